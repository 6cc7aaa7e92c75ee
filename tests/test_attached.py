"""Factors beside the layers give what merged weights give."""

from __future__ import annotations

import pytest
import torch
from cases import moved_adapter, noise_batch, noise_loss, tiny_unet
from oracles import relative_error

from adapter_mu.meta import pair_block, product
from adapter_mu.meta.tensors import value_and_gradient
from adapter_mu.models import announce_blocks
from adapter_mu.params import AttachedLora, call_with


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_same_loss_gradient_and_product_as_merged(model: str) -> None:
    unet = tiny_unet(model)
    announce_blocks(unet, pair_block)
    merged = moved_adapter(unet, "lora", "full")
    beside = AttachedLora(unet, merged)
    batch, theta = noise_batch(unet, 1), merged.parameters()
    vector = {name: torch.ones_like(tensor) for name, tensor in theta.items()}
    results = [
        (
            *value_and_gradient(lambda p, a=adapter: noise_loss(unet, a.materialize(p), batch), theta),
            product("auto", lambda p, a=adapter: noise_loss(unet, a.materialize(p), batch), theta, vector)[0],
        )
        for adapter in (merged, beside)
    ]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert relative_error(results[1][1], results[0][1]) < 1e-12
    assert relative_error(results[1][2], results[0][2]) < 1e-12


def test_it_shares_the_base_and_leaves_it_alone() -> None:
    unet = tiny_unet("sd")
    names = list(dict(unet.named_parameters()))
    lora = moved_adapter(unet, "lora", "cross_attention")
    beside = AttachedLora(unet, lora)
    assert list(dict(unet.named_parameters())) == names
    base = {id(p) for p in unet.parameters()}
    factors = beside.materialize(lora.parameters())
    assert base <= {id(p) for p in factors.module.parameters()}
    assert beside.parameters() is not None and beside.kind == "lora"
    inputs = noise_batch(unet, 1)["inputs"]
    assert torch.equal(factors.module(**inputs).sample, unet(**inputs).sample)
    assert not torch.equal(call_with(unet, factors, **inputs).sample, unet(**inputs).sample)
