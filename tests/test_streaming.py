"""Weights that lie elsewhere or are finer than their layers: same numbers, and only what runs is brought."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import noise_batch, noise_loss, tiny_unet
from oracles import relative_error
from torch import Tensor, nn

from adapter_mu.live import LiveBytes
from adapter_mu.meta import PairCheckpoint, pair_block, product
from adapter_mu.meta.tensors import value_and_gradient
from adapter_mu.models import announce_blocks, prepare_for_meta
from adapter_mu.params import call_with, make_adapter, streamed
from adapter_mu.params.streaming import Place, bring, fetches

ENGINES = ("reverse_over_reverse", "pair_checkpoint")


def half_unet(dtype: torch.dtype) -> Any:
    return tiny_unet("sdxl").to(dtype)


def results(unet: Any, engine: str, host: bool) -> list[dict[str, Tensor]]:
    """Gradient and product in fp32 masters, which may count as the host's."""
    theta = {n: p.detach().float() for n, p in unet.named_parameters() if "attn2" in n or "norm" in n or "conv1" in n}
    vector = {n: torch.ones_like(t) for n, t in theta.items()}
    batch = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.to(unet.dtype) if t.is_floating_point() else t, noise_batch(tiny_unet("sdxl"), 1)
    )

    def loss(params: dict[str, Tensor]) -> Tensor:
        return noise_loss(unet, params, batch)

    with LiveBytes(host=theta.values() if host else ()):
        return [value_and_gradient(loss, theta)[1], product(engine, loss, theta, vector)[0]]


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_and_products_are_the_same_to_the_bit(engine: str, dtype: torch.dtype, host: bool) -> None:
    unet = half_unet(dtype)
    prepare_for_meta(unet, checkpointing=True) if engine == ENGINES[0] else announce_blocks(unet, pair_block)
    expected = results(unet, engine, False)
    with streamed(unet):
        assert fetches(unet)
        found = results(unet, engine, host)
    assert not fetches(unet) and all("forward" not in part.__dict__ for part in unet.modules())
    for own, other in zip(found, expected, strict=True):
        assert all(torch.equal(own[n], other[n]) and own[n].dtype == torch.float32 for n in own)


def test_only_one_blocks_weights_are_on_the_device_at_once() -> None:
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.SiLU()) for _ in range(8))).requires_grad_(False)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = pair_block(block, x)
            return x

    chain, x = Chain().bfloat16(), torch.randn(2, 64).bfloat16()
    theta = {n: p.detach().float() for n, p in chain.named_parameters()}
    peaks = {}
    for fetched in (True, False):
        with LiveBytes([*chain.parameters(), x], host=theta.values()) as live:
            loss = lambda p: call_with(chain, p, x).float().square().sum()  # noqa: E731
            if fetched:
                with streamed(chain):
                    PairCheckpoint()(loss, theta, theta)
            else:
                PairCheckpoint()(loss, theta, theta)
        peaks[fetched] = live.peak
    one = 64 * 64 * 2
    assert peaks[True] < 7 * one < 16 * one < peaks[False]  # weight, tangent, cotangent; against all eight pairs
    assert live.host_peak >= 8 * 2 * one  # the product itself came to the host


def test_what_is_at_its_place_is_not_copied() -> None:
    weight = torch.ones(3)
    assert bring(weight, Place.of(weight)) is weight
    assert bring(weight, Place(weight.device, torch.float64)).dtype == torch.float64


def test_a_copy_of_a_streamed_module_streams_by_itself() -> None:
    layer = nn.Sequential(nn.Linear(2, 2).bfloat16())
    theta = {"0.weight": torch.full((2, 2), 1.001)}
    with streamed(layer):
        twin = copy.deepcopy(layer)
        twin[0].weight.data.zero_()
        x = torch.ones(1, 2).bfloat16()
        assert torch.equal(call_with(twin, theta, x), call_with(layer, theta, x))
        assert layer[0].weight.dtype == torch.bfloat16 and twin[0].weight.abs().sum() == 0


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_an_adapter_elsewhere_saves_and_loads_as_one_beside_its_base(kind: str) -> None:
    unet = half_unet(torch.bfloat16)
    there = make_adapter(unet, kind, "cross_attention", rank=2, device=torch.device("cpu"))
    usual = make_adapter(unet, kind, "cross_attention", rank=2)
    for name, tensor in there.state_dict().items():
        assert torch.equal(tensor, usual.state_dict()[name])
    there.load_state_dict({n: t + 1 for n, t in usual.state_dict().items()})
    assert relative_error(there.state_dict(), {n: t + 1 for n, t in usual.state_dict().items()}) < 1e-6
    assert make_adapter(unet, kind, "cross_attention", rank=2, device=torch.device("meta")).parameters()
