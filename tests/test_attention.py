"""Attention that can be differentiated twice, and checkpointing that recomputes with the right parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny_pipelines import tiny_model
from torch import Tensor

from adapter_mu.errors import ModelError
from adapter_mu.models import (
    LoadedModel,
    check_twice_differentiable,
    diffusion_loss,
    encode_prompts,
    predict_noise,
    prepare_for_first_order,
    prepare_for_meta,
)

SUBSET = ("attn2.to_k.weight", "attn1.to_q.weight", "conv1.weight", "norm1.bias", "time_embedding.linear_1.weight")
Params = dict[str, Tensor]


@pytest.fixture(params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    model = tiny_model(request.param)
    model.unet.double()
    return model


def moved(model: LoadedModel) -> Params:
    """Some of the UNet's parameters, clearly away from where the UNet has them."""
    generator = torch.Generator().manual_seed(5)

    def step(value: Tensor) -> Tensor:
        return (value + 0.3 * torch.randn(value.shape, generator=generator)).double().requires_grad_()

    return {name: step(value) for name, value in model.unet.named_parameters() if name.endswith(SUBSET)}


def loss_at(model: LoadedModel, params: Params) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    cond = encode_prompts(model, ["a ring", "a red square"])
    return diffusion_loss(model, params, latents, noise, torch.tensor([10, 600]), cond)


def gradient(model: LoadedModel, params: Params, *, graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss_at(model, params), list(params.values()), create_graph=graph)


def product(model: LoadedModel, params: Params) -> tuple[Tensor, ...]:
    """Hessian of the loss times a fixed vector, by double backward."""
    first = gradient(model, params, graph=True)
    return torch.autograd.grad(first, list(params.values()), direction(params))


def direction(params: Params) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in params.values()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_attention_is_found_out_and_ours_passes(model: LoadedModel, checkpointing: bool) -> None:
    prepare_for_first_order(model.unet, checkpointing=checkpointing)
    with pytest.raises(ModelError, match=r"AttnProcessor2_0 in \d+ layers, first '.*attn1'.*call prepare_for_meta"):
        check_twice_differentiable(model.unet)
    prepare_for_meta(model.unet, checkpointing=checkpointing)
    check_twice_differentiable(model.unet)
    assert not any(value.grad is not None for value in model.unet.parameters())


def test_fresh_unet_is_not_ready(model: LoadedModel) -> None:
    with pytest.raises(ModelError, match="AttnProcessor2_0"):
        check_twice_differentiable(model.unet)


def test_one_bad_layer_is_named(model: LoadedModel) -> None:
    prepare_for_meta(model.unet)
    bad = "mid_block.attentions.0.transformer_blocks.0.attn2"
    model.unet.get_submodule(bad).set_processor(AttnProcessor2_0())
    with pytest.raises(ModelError, match=f"AttnProcessor2_0 in 1 layers, first '{bad}'"):
        check_twice_differentiable(model.unet)


def test_both_attentions_predict_the_same(model: LoadedModel) -> None:
    x, cond = torch.randn(2, 4, 8, 8, dtype=torch.float64), encode_prompts(model, ["a ring", ""])
    prepare_for_meta(model.unet)
    explicit = predict_noise(model, None, x, 7, cond)
    prepare_for_first_order(model.unet)
    torch.testing.assert_close(predict_noise(model, None, x, 7, cond), explicit)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointing_changes_no_derivative(model: LoadedModel, training: bool, frozen: bool) -> None:
    """Recomputed with the UNet's own parameters, this would raise if they are frozen and be far off if not."""
    model.unet.requires_grad_(not frozen)
    params = moved(model)
    prepare_for_meta(model.unet)
    plain = (*gradient(model, params), *product(model, params))
    model.unet.train(training)
    prepare_for_meta(model.unet, checkpointing=True)
    assert model.unet.training == training
    torch.testing.assert_close((*gradient(model, params), *product(model, params)), plain, rtol=1e-10, atol=1e-12)


def test_first_order_checkpointing_sees_given_parameters(model: LoadedModel) -> None:
    params = moved(model)
    prepare_for_first_order(model.unet)
    plain = gradient(model, params)
    prepare_for_first_order(model.unet, checkpointing=True)
    torch.testing.assert_close(gradient(model, params), plain, rtol=1e-10, atol=1e-12)


def test_hessian_product_agrees_with_finite_differences(model: LoadedModel) -> None:
    params, step = moved(model), 1e-5
    prepare_for_meta(model.unet, checkpointing=True)
    ahead, behind = (
        {
            name: (value + sign * step * along).detach().requires_grad_()
            for (name, value), along in zip(params.items(), direction(params), strict=True)
        }
        for sign in (1, -1)
    )
    differences = zip(gradient(model, ahead), gradient(model, behind), strict=True)
    expected = tuple((after - before) / (2 * step) for after, before in differences)
    torch.testing.assert_close(product(model, params), expected, rtol=1e-5, atol=1e-8)


def test_checkpointing_is_really_on_in_eval_mode(model: LoadedModel) -> None:
    """Recomputing enters blocks a second time (and stops early, so that only a pre-hook sees it)."""
    calls = []
    for name, block in model.unet.named_modules():
        if name.endswith("resnets.0"):
            block.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for checkpointing in (False, True):
        prepare_for_meta(model.unet, checkpointing=checkpointing)
        calls.clear()
        gradient(model, moved(model))
        counts.append(len(calls))
    assert counts[1] > counts[0]


def test_deep_copies_keep_the_preparation(model: LoadedModel) -> None:
    prepare_for_meta(model.unet, checkpointing=True)
    check_twice_differentiable(copy.deepcopy(model.unet))
