"""The pair checkpoint against full unrolled backpropagation, and everything a block may do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, noise_batch, noise_loss, tiny_unet, unet_case
from diffusers.models.attention_processor import AttnProcessor
from oracles import flat, relative_error, unrolled
from test_meta_gradient import BAR, SPACES, attackers, solve
from torch import Tensor

from adapter_mu.live import LiveBytes
from adapter_mu.meta import PRODUCTS, SGD, PairCheckpoint, frozen_linear, meta_gradient, pair_block, product
from adapter_mu.meta.pair_checkpoint import announced_calls
from adapter_mu.meta.tensors import value_and_gradient
from adapter_mu.models import announce_blocks
from adapter_mu.params import AttachedLora, Lora, call_with

CHUNKED, WHOLE = PairCheckpoint(chunk=3), PairCheckpoint(chunk=0)


def announced_case(model: str, kind: str, subset: str, steps: int) -> Case:
    """The case of the same name on a UNet with fused attention that announces its blocks."""
    case, _ = unet_case(model, kind, subset, steps)
    announce_blocks(case.inner_loss.__closure__[1].cell_contents, pair_block, frozen_linear)  # type: ignore[index]
    return case


@pytest.mark.parametrize(
    ("engines", "steps"),
    [
        ([CHUNKED, WHOLE], 1),
        ([CHUNKED], 2),
        ([CHUNKED], 3),
        pytest.param([WHOLE], 2, marks=pytest.mark.slow),
        pytest.param([WHOLE], 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("rule_name", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_equals_unrolled_backpropagation(
    model: str,
    space: str,
    engines: list[PairCheckpoint],
    steps: int,
    rule_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, subset, lr = SPACES[space]
    attacker, rule = attackers(lr)[rule_name]
    expected, _ = unrolled(unet_case(model, kind, subset, steps)[0], rule)
    case = announced_case(model, kind, subset, steps)
    for engine in engines:
        monkeypatch.setitem(PRODUCTS, "pair_checkpoint", engine)
        assert relative_error(solve(case, attacker, hvp="pair_checkpoint").gradient, expected) <= BAR


def test_auto_takes_it_exactly_when_blocks_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for name in ("pair_checkpoint", "reverse_over_reverse"):
        monkeypatch.setitem(PRODUCTS, name, lambda *a, n=name, f=PRODUCTS[name]: used.append(n) or f(*a))
    vector = {name: torch.ones_like(t) for name, t in unet_case("sd", "lora", "cross_attention", 1)[0].params.items()}
    plain, announced = (
        unet_case("sd", "lora", "cross_attention", 1)[0],
        announced_case("sd", "lora", "cross_attention", 1),
    )
    results = [product("auto", case.outer_loss, case.params, vector)[0] for case in (plain, announced)]
    assert relative_error(*results) < 1e-12
    assert used == ["pair_checkpoint"]
    solve(announced, SGD(0.1))
    assert used == ["pair_checkpoint"] * 2
    solve(plain, SGD(0.1))
    assert used == ["pair_checkpoint"] * 2


def test_an_announced_block_is_an_ordinary_checkpoint_outside_products() -> None:
    plain, announced = unet_case("sdxl", "lora", "full", 0)[0], announced_case("sdxl", "lora", "full", 0)
    before = announced_calls()
    results = []
    for case in (plain, announced):
        leaves = {n: p.detach().requires_grad_() for n, p in case.params.items()}
        results.append(
            dict(zip(leaves, torch.autograd.grad(case.outer_loss(leaves), list(leaves.values())), strict=True))
        )
    assert announced_calls() > before
    assert relative_error(*results) < 1e-13


def test_peft_layers_inside_the_model() -> None:
    """The factors are parameters of the UNet's own layers; nothing is merged."""
    from peft import LoraConfig

    unet = tiny_unet("sdxl")
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1"]))
    unet.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    params = {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in unet.named_parameters()
        if "lora_" in name
    }
    vector = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
    batch = noise_batch(unet, 3)

    def loss(p: dict[str, Tensor]) -> Tensor:
        return noise_loss(unet, p, batch)

    unet.set_attn_processor(AttnProcessor())
    expected, _ = product("reverse_over_reverse", loss, params, vector)
    announce_blocks(unet, pair_block)
    assert relative_error(product("auto", loss, params, vector)[0], expected) < 1e-12


def rounded_unet(dtype: torch.dtype) -> Any:
    """A small UNet whose weights are rounded to bfloat16, announcing its blocks."""
    unet = tiny_unet("sd").bfloat16().to(dtype)
    announce_blocks(unet, pair_block)
    return unet


def single_loss(unet: Any, adapter: Any, batch: dict[str, Any]) -> Any:
    """The batch's loss, with the UNet in its own precision and the arithmetic after it in float32."""
    own, noise = unet.dtype, batch["noise"].float()
    inputs = {k: v.to(own) if v.is_floating_point() else v for k, v in batch["inputs"].items()}
    return lambda p: (call_with(unet, adapter.materialize(p), **inputs).sample.float() - noise).square().mean()


def test_in_bfloat16_the_product_is_as_exact_as_a_gradient() -> None:
    """fp32 factors beside a bf16 base; the reference is the same rounded base in float32."""
    adapters = {}
    for dtype in (torch.float32, torch.bfloat16):
        unet = rounded_unet(dtype)
        adapters[dtype] = unet, AttachedLora(unet, Lora(unet, r"attn[12]\.", rank=2))
    (exact, fine_lora), (half, coarse_lora) = adapters.values()
    errors = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        names = {n: p.shape for n, p in fine_lora.parameters().items()}
        theta = {n: torch.randn(s, generator=generator) * (0.05 if "lora_B" in n else 0.2) for n, s in names.items()}
        batches = [noise_batch(tiny_unet("sd"), 2 * seed + n) for n in range(2)]

        (_, vector), (_, fine), (_, coarse) = (
            value_and_gradient(single_loss(unet, adapter, batches[number]), theta)
            for unet, adapter, number in ((exact, fine_lora, 1), (exact, fine_lora, 0), (half, coarse_lora, 0))
        )
        expected, _ = product("pair_checkpoint", single_loss(exact, fine_lora, batches[0]), theta, vector)
        found, _ = product("pair_checkpoint", single_loss(half, coarse_lora, batches[0]), theta, vector)
        assert found[next(iter(theta))].dtype == torch.float32
        errors.append((relative_error(coarse, fine), relative_error(found, expected)))
    of_gradient, of_product = (sum(column) for column in zip(*errors, strict=True))
    assert of_product <= 1.2 * of_gradient, errors


def test_live_bytes_stay_near_a_checkpointed_gradients() -> None:
    """The tiny UNet widened in tokens, where activations count; reverse-over-reverse keeps ten times as much."""
    unet = tiny_unet("sd").float()
    weights = {n: p.detach() for n, p in unet.named_parameters() if "attn1.to_q" in n}
    vector = {n: torch.ones_like(p) for n, p in weights.items()}
    x, y, text = torch.randn(1, 4, 24, 24), torch.randn(1, 4, 24, 24), torch.randn(1, 3, 12)

    def loss(p: dict[str, Tensor]) -> Tensor:
        return (call_with(unet, p, x, torch.tensor(5), text, return_dict=False)[0] - y).square().mean()

    peaks = {}
    for name, engine in (("reverse_over_reverse", None), ("pair_checkpoint", PairCheckpoint(64))):
        announce_blocks(unet, pair_block)
        if engine is None:
            unet.set_attn_processor(AttnProcessor())
        with LiveBytes([*unet.parameters(), *weights.values(), *vector.values(), x, y, text]) as live:
            (engine or PRODUCTS[name])(loss, weights, vector)
        peaks[name] = live.peak
    assert peaks["pair_checkpoint"] * 8 < peaks["reverse_over_reverse"], peaks


def test_the_meta_device_predicts_live_bytes() -> None:
    peaks = []
    for device in ("cpu", "meta"):
        unet = tiny_unet("sdxl").to(device)
        announce_blocks(unet, pair_block)
        weights = {n: p.detach() for n, p in unet.named_parameters() if "attn" in n}
        batch = torch.utils._pytree.tree_map_only(
            Tensor, lambda t, d=device: t.to(d), noise_batch(tiny_unet("sdxl"), 1)
        )
        with torch.device(device), LiveBytes([*unet.parameters()]) as live:
            PairCheckpoint(8)(lambda p, u=unet, b=batch: noise_loss(u, p, b), weights, weights)
        peaks.append(live.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


def test_meta_gradient_notices_a_loss_that_does_not_repeat_itself() -> None:
    from adapter_mu.errors import UserError

    def noisy(params: dict[str, Tensor], _: object) -> Tensor:
        return (params["x"] * torch.rand(3, dtype=torch.float64)).square().sum()

    params = {"x": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(UserError, match="does not repeat itself"):
        meta_gradient(noisy, lambda p: p["x"].sum(), params, [0], attacker=SGD(0.1), hvp="pair_checkpoint")
    assert flat(params).sum() == 3
