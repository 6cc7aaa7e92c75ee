"""What a block may contain, how it may be called, and the traps that give wrong numbers without an error."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import noise_batch, noise_loss, tiny_unet
from diffusers.models.attention_processor import AttnProcessor
from oracles import relative_error
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapter_mu.errors import ModelError, UserError
from adapter_mu.live import LiveBytes
from adapter_mu.meta import PairCheckpoint, check_product, frozen_linear, pair_block, pair_rules, product
from adapter_mu.models import announce_blocks
from adapter_mu.models.quantized import dequantized, is_quantized

Params = dict[str, Tensor]
EXACT = 1e-12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(loss: Callable[[Params], Tensor], params: Params, engine: PairCheckpoint | None = None) -> float:
    """Relative distance of the pair product to double backward, with the same random numbers."""
    vector = {name: draw(*t.shape, seed=9).to(t.dtype) for name, t in params.items()}
    torch.manual_seed(1)
    with sdpa_kernel([SDPBackend.MATH]):
        expected, _ = product("reverse_over_reverse", loss, params, vector)
    torch.manual_seed(1)
    found, _ = (engine or PairCheckpoint(2))(loss, params, vector)
    return relative_error(found, expected)


def of_input(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[Callable[[Params], Tensor], Params]:
    weight = draw(shape[-1], shape[-1], seed=2)
    return lambda p: torch.sin(function(p["x"] @ weight)).pow(2).sum(), {"x": draw(*shape)}


RULED = {
    "layer_norm": (lambda x: F.layer_norm(x, (6,), draw(6), draw(6)), (4, 6), F.layer_norm),
    "softmax": (lambda x: x.softmax(-1), (4, 6), Tensor.softmax),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x.cos(), x.sin()), (2, 2, 5, 6), None),
    "group_norm": (lambda x: F.group_norm(x, 2, draw(4), draw(4)), (2, 4, 3, 6), F.group_norm),
    "silu": (F.silu, (4, 6), F.silu),
    "gelu": (F.gelu, (4, 6), F.gelu),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), (4, 6), None),
    "linear": (lambda x: F.linear(x, draw(3, 6), draw(3)), (4, 6), F.linear),
    "conv2d": (lambda x: F.conv2d(x, draw(5, 4, 3, 3), draw(5), 2, 1), (2, 4, 6, 6), F.conv2d),
    "number": (lambda x: (2 * x / 3) * 0.5, (4, 6), Tensor.mul),
}


@pytest.mark.parametrize("name", RULED)
def test_every_rule_is_exact(name: str) -> None:
    function, shape, _ = RULED[name]
    assert error(*of_input(function, *shape)) < EXACT


def test_without_its_rule_layer_norm_is_wrong_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    function, shape, key = RULED["layer_norm"]
    monkeypatch.delitem(pair_rules.RULES, key)
    assert error(*of_input(function, *shape)) > 1e-2


def test_without_its_rule_softmax_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    function, shape, key = RULED["softmax"]
    monkeypatch.delitem(pair_rules.RULES, key)
    with pytest.raises(RuntimeError, match="inplace"):
        error(*of_input(function, *shape))


def test_a_number_times_a_pair_makes_no_further_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"x": torch.ones(1000, dtype=torch.float64)}

    def peak() -> int:
        with LiveBytes(params.values()) as live:
            PairCheckpoint()(lambda p: (p["x"] * 2.0).sum(), params, params)
        return live.peak

    with_rule = peak()
    for function in [f for f in pair_rules.RULES if getattr(f, "__name__", "") in ("mul", "__mul__")]:
        monkeypatch.delitem(pair_rules.RULES, function)
    assert with_rule + 8000 <= peak()


def test_differentiating_inside_the_open_level_is_refused() -> None:
    """Saved tensors would come back as pairs there."""
    layer = nn.Linear(3, 3).double()

    def penalty(p: Params) -> Tensor:
        value = pair_block(nn.Sequential(layer, nn.SiLU()), p["x"]).sum()
        return torch.autograd.grad(value, p["x"], create_graph=False)[0].square().sum() + value

    with pytest.raises(UserError, match="must not differentiate inside itself"):
        product("pair_checkpoint", penalty, {"x": draw(3)}, {"x": draw(3)})


def test_another_forward_derivative_around_it_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level(), pytest.raises(UserError, match="inside another forward-mode"):
        product("pair_checkpoint", lambda p: p["x"].sum(), {"x": draw(3)}, {"x": draw(3)})


@pytest.mark.parametrize("announced", [True, False])
def test_what_is_computed_under_no_grad_is_constant(announced: bool) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = (x * x).view(-1).flip(0)
            return (torch.sin(x) * target).exp()

    block = Half()
    assert error(lambda p: (pair_block(block, p["x"]) if announced else block(p["x"])).sum(), {"x": draw(4)}) < EXACT


MASKS = {
    "boolean": lambda: draw(5, 5) > -0.5,
    "added": lambda: draw(5, 5),
    "per_batch": lambda: draw(2, 1, 1, 5),
    "per_head": lambda: draw(2, 2, 5, 5),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("moving", ["q", "k", "v", "qk", "kv", "qkv"])
def test_attention_with_masks_and_constants(mask: str, moving: str) -> None:
    fixed = {name: draw(2, 2, 5, 4, seed=n) for n, name in enumerate("qkv")}
    seen = MASKS[mask]()
    if mask == "boolean":
        seen |= torch.eye(5, dtype=torch.bool)  # a row that sees nothing has no softmax

    def loss(p: Params) -> Tensor:
        now = {name: torch.tanh(p[name]) if name in p else t for name, t in fixed.items()}
        return F.scaled_dot_product_attention(now["q"], now["k"], now["v"], attn_mask=seen).sin().sum()

    for chunk in (2, 0, None):
        assert error(loss, {name: fixed[name] for name in moving}, PairCheckpoint(chunk)) < EXACT


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}, {"dropout_p": 0.4}])
def test_attentions_other_options(options: dict[str, Any]) -> None:
    heads = 1 if "enable_gqa" in options else 2
    key = draw(2, heads, 5, 4, seed=3)
    params = {"q": draw(2, 2, 5, 4), "k": key}

    def loss(p: Params) -> Tensor:
        return F.scaled_dot_product_attention(p["q"], p["k"], p["k"].sin(), **options).sin().sum()

    if "dropout_p" in options:  # other random numbers than PyTorch's own: compare with itself, unchunked and composed
        torch.manual_seed(0)
        found = PairCheckpoint()(loss, params, params)[0]
        torch.manual_seed(0)
        assert relative_error(PairCheckpoint(2)(loss, params, params)[0], found) < EXACT
    else:
        assert error(loss, params) < EXACT


def test_a_mask_that_is_trained() -> None:
    q, k = draw(2, 5, 4), draw(2, 5, 4, seed=1)
    loss = lambda p: F.scaled_dot_product_attention(q, k, k, attn_mask=p["bias"].tanh()).sin().sum()  # noqa: E731
    assert error(loss, {"bias": draw(5, 5)}) < EXACT


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


class Faulty(nn.Module):
    """Layer norm as PyTorch derives it: a stand-in for a layer whose derivative nobody has checked."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault, self.weight = fault, nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.native_layer_norm(x, (8,), self.weight, None, 1e-5)[0] if self.fault else F.layer_norm(x, (8,))
        return y * self.weight


@pytest.mark.parametrize("fault", [True, False])
def test_self_check_names_the_type_of_layer_at_fault(fault: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), Faulty(fault)), nn.SiLU(), nn.Linear(8, 8)).requires_grad_(
        False
    )
    x = draw(3, 8).float()
    params = dict(model[0][0].named_parameters())
    loss = lambda p: torch.func.functional_call(model, {f"0.0.{n}": t for n, t in p.items()}, (x,)).square().sum()  # noqa: E731
    if not fault:
        return check_product(model, lambda: model(x), loss, params)
    with pytest.raises(ModelError, match=r"at fault: Faulty: relative error"):
        check_product(model, lambda: model(x), loss, params)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_self_check_passes_a_unet(kind: str) -> None:
    unet = tiny_unet(kind).float()
    batch = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.float() if t.is_floating_point() else t, noise_batch(tiny_unet(kind), 1)
    )
    unet.set_attn_processor(AttnProcessor())
    unet.enable_gradient_checkpointing(pair_block)
    params = {n: p.detach() for n, p in unet.named_parameters() if "to_k" in n}
    check_product(unet, lambda: unet(**batch["inputs"]).sample, lambda p: noise_loss(unet, p, batch), params)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_frozen_quantised_layers(kind: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = nn.Linear(64, 64)
    if kind == "nf4":
        quantised = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
        quantised.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
    else:
        quantised = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        quantised.load_state_dict(plain.state_dict())
    quantised = quantised.to("cpu").requires_grad_(False)
    assert is_quantized(quantised)
    quantised(torch.ones(1, 64))
    matrix = dequantized(quantised).float()
    assert relative_error({"w": matrix}, {"w": plain.weight.float()}) < 0.15
    frozen_linear(quantised, dequantized)
    first, x = nn.Linear(64, 64), torch.randn(5, 64)
    model = nn.Sequential(first, nn.SiLU(), copy.deepcopy(quantised), nn.Tanh())
    dense = nn.Sequential(first, nn.SiLU(), nn.Linear(64, 64), nn.Tanh())
    dense[2].weight.data, dense[2].bias.data = matrix, quantised.bias.detach()

    def loss(net: nn.Module) -> Callable[[Params], Tensor]:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self) -> Tensor:
                return pair_block(self.net, x).square().sum()

        return lambda p: torch.func.functional_call(Whole(), {f"net.0.{n}": t for n, t in p.items()}, ())

    params = {n: p.detach() for n, p in first.named_parameters()}
    vector = {n: torch.randn_like(p) for n, p in params.items()}
    found, _ = product("auto", loss(model), params, vector)
    expected, _ = product("auto", loss(dense), params, vector)
    assert relative_error(found, expected) < (1e-5 if kind == "nf4" else 0.05)
