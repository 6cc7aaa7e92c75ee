"""Operations on pairs, and the traps: each gives wrong numbers without an error, or an error, without its rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import relative_error
from pair_cases import EXACT, Params, draw, error, of_input
from torch import Tensor, nn

from adapter_mu.errors import UserError
from adapter_mu.live import LiveBytes
from adapter_mu.meta import PairCheckpoint, pair_block, pair_rules, product

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
