"""What a block may contain, how it may be called, and in which thread."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import noise_batch, noise_loss, tiny_unet
from oracles import relative_error
from pair_cases import EXACT, Params, draw, error
from torch import Tensor, nn

from adapter_mu.meta import PairCheckpoint, pair_block, product
from adapter_mu.models import announce_blocks


class Nested(nn.Module):
    """Takes and returns nested structures, the same tensor twice, a constant and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        self.silu = nn.SiLU()

    def forward(self, x: Tensor, more: dict[str, Any], *, flip: bool) -> tuple[Any, ...]:
        y = self.silu(self.linear(x)) * more["gain"][0]
        y = y.flip(0) if flip else y
        return y, {"again": y, "other": [x.sin(), more["index"] + 1]}, "label", None


def nested_loss(block: nn.Module, p: Params) -> Tensor:
    own = {name.removeprefix("block."): t for name, t in p.items() if name.startswith("block.")}
    arguments = (p["x"].tanh(), {"gain": (p["x"].cos(), None), "index": torch.arange(3)})

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self) -> Tensor:
            y, rest, label, nothing = pair_block(self.block, *arguments, flip=True)
            assert (label, nothing) == ("label", None)
            assert rest["other"][1].tolist() == [1, 2, 3]
            z = pair_block(self.block, y, {"gain": (rest["again"], None), "index": torch.arange(3)}, flip=False)
            return (z[0] * rest["other"][0] * y).sum()

    return torch.func.functional_call(Outer(), {f"block.{name}": t for name, t in own.items()}, ())


def test_nested_arguments_and_results_and_a_block_that_is_called_twice() -> None:
    block = Nested().requires_grad_(False)
    params = {f"block.{n}": 1.5 * t for n, t in block.named_parameters()} | {"x": draw(3, 4)}
    assert error(lambda p: nested_loss(block, p), params) < EXACT
    assert error(lambda p: nested_loss(block, p), {"x": params["x"]}) < EXACT


def test_tied_weights_and_a_frozen_block_upstream() -> None:
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    second.weight = first.weight
    frozen, tied, x = (
        nn.Linear(4, 4).double().requires_grad_(False),
        nn.Sequential(first, nn.Tanh(), second),
        draw(3, 4),
    )

    def loss(p: Params) -> Tensor:
        return torch.func.functional_call(Chain(frozen, tied), {"tied.0.weight": p["w"]}, (x,)).square().sum()

    class Chain(nn.Module):
        def __init__(self, frozen: nn.Module, tied: nn.Module) -> None:
            super().__init__()
            self.frozen, self.tied = frozen, tied

        def forward(self, x: Tensor) -> Tensor:
            return pair_block(self.tied, pair_block(self.frozen, x))

    assert error(loss, {"w": draw(4, 4)}) < EXACT


def test_dropout_draws_the_same_numbers_again() -> None:
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU(), nn.Dropout(0.3)).double().train()
    x = draw(3, 8)

    def loss(p: Params) -> Tensor:
        h = pair_block(block, x * p["a"])
        return (pair_block(block, h) + torch.rand(3, 8, dtype=torch.float64)).square().sum()

    before = torch.get_rng_state()
    assert error(loss, {"a": draw(8)}) < EXACT
    torch.set_rng_state(before)
    vector = {"a": draw(8, seed=9)}
    PairCheckpoint()(loss, {"a": draw(8)}, vector)
    after = torch.rand(1)
    torch.set_rng_state(before)
    loss({"a": draw(8)})
    assert torch.equal(after, torch.rand(1))  # the replay leaves the global state where the forward pass did


def test_autocast_holds_again_when_a_block_runs_again() -> None:
    seen: list[torch.dtype] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return F.layer_norm(F.silu(y), (8,)).softmax(-1)

    block, x = Watched(8, 8), draw(3, 8).float()
    params = {"a": draw(8).float()}

    def loss(p: Params) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (pair_block(block, x * p["a"]).float() * draw(3, 8).float()).sum()

    plain = lambda p: (block(x * p["a"]) * draw(3, 8).float()).sum()  # noqa: E731
    vector = {"a": draw(8, seed=9).float()}
    exact, _ = product("reverse_over_reverse", plain, params, vector)
    seen.clear()
    found, _ = PairCheckpoint()(loss, params, vector)
    assert seen == [torch.bfloat16] * 2
    assert relative_error(found, exact) < 0.05


def in_fresh_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backward pass, nested ones too, runs in a thread that has no state of its own: as on a GPU."""
    original = torch.autograd.grad

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        box: list[Any] = []
        thread = threading.Thread(target=lambda: box.append(original(*args, **kwargs)))
        thread.start()
        thread.join(timeout=60)
        return box[0]

    monkeypatch.setattr(torch.autograd, "grad", elsewhere)


def test_backward_in_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_unet("sd")
    params = {n: p.detach() for n, p in unet.named_parameters() if "to_q" in n}
    vector = {n: draw(*p.shape) for n, p in params.items()}
    batch = noise_batch(unet, 1)
    announce_blocks(unet, pair_block)
    expected, _ = PairCheckpoint(4)(lambda p: noise_loss(unet, p, batch), params, vector)
    in_fresh_threads(monkeypatch)
    found, _ = PairCheckpoint(4)(lambda p: noise_loss(unet, p, batch), params, vector)
    assert relative_error(found, expected) < EXACT


def test_two_products_at_the_same_time() -> None:
    block = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.SiLU()).double()
    loss = lambda p: pair_block(block, pair_block(block, p["x"])).square().sum()  # noqa: E731
    params = [{"x": draw(8, 16, seed=n)} for n in range(4)]
    expected = [PairCheckpoint()(loss, p, p)[0] for p in params]
    found: dict[int, Params] = {}

    def work(n: int) -> None:
        for _ in range(10):
            found[n] = PairCheckpoint()(loss, params[n], params[n])[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(relative_error(found[n], expected[n]) < EXACT for n in range(4))
