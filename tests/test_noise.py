"""Noise prediction and the diffusion loss against diffusers' schedulers, in every dtype and at the real sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from tiny_pipelines import SCHEDULE, tiny_model
from torch import Tensor, nn

from adapter_mu.models import (
    Conditioning,
    LoadedModel,
    add_noise,
    diffusion_loss,
    encode_prompts,
    predict_noise,
    prepare_for_meta,
    row_losses,
)

CASES = [(kind, target) for kind in ("sd", "sdxl") for target in ("epsilon", "v_prediction")]
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    kind, target = request.param
    return tiny_model(kind, prediction_type=target)


def batch(model: LoadedModel, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator).to(dtype)
    return latents, noise, torch.tensor([3, 400, 999]), encode_prompts(model, ["a ring", "a red square", ""])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_noise_is_added_by_the_training_formula(scheduler: Any) -> None:
    """Euler's own `add_noise` works in another scale; training always mixes by alpha_bar."""
    model = tiny_model("sd")
    model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config)
    latents, noise, t, _ = batch(model)
    expected = DDPMScheduler.from_config(model.pipeline.scheduler.config).add_noise(latents, noise, t)
    torch.testing.assert_close(add_noise(model, latents, noise, t), expected)


def test_loss_is_the_mse_to_the_schedulers_target(model: LoadedModel) -> None:
    latents, noise, t, cond = batch(model)
    reference = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    target = noise if model.prediction_type == "epsilon" else reference.get_velocity(latents, noise, t)
    added = None if cond.pooled is None else {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    output = model.unet(reference.add_noise(latents, noise, t), t, cond.embeds, added_cond_kwargs=added).sample
    torch.testing.assert_close(diffusion_loss(model, None, latents, noise, t, cond), F.mse_loss(output, target))
    rows = row_losses(model, None, latents, noise, t, cond)
    torch.testing.assert_close(rows, F.mse_loss(output, target, reduction="none").mean((1, 2, 3)))


def test_epsilon_from_v_is_the_formula_and_the_schedulers(model: LoadedModel) -> None:
    latents, _, t, cond = batch(model)
    added = None if cond.pooled is None else {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    output = model.unet(latents, t, cond.embeds, added_cond_kwargs=added).sample
    alpha = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    if model.prediction_type == "v_prediction":
        output = alpha.sqrt() * output + (1 - alpha).sqrt() * latents
    torch.testing.assert_close(predict_noise(model, None, latents, t, cond), output)
    for timestep in (400, torch.tensor(400)):
        torch.testing.assert_close(predict_noise(model, None, latents, timestep, cond)[1], output[1])


class Oracle(nn.Module):
    """A UNet that knows the answer it is trained to give."""

    dtype = torch.float32

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor]:
        return (self.answer,)


def test_perfect_unet_recovers_the_noise_at_zero_loss(model: LoadedModel) -> None:
    latents, noise, t, cond = batch(model)
    reference = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    answer = noise if model.prediction_type == "epsilon" else reference.get_velocity(latents, noise, t)
    model.pipeline.unet = Oracle(answer)
    found = predict_noise(model, None, add_noise(model, latents, noise, t), t, cond)
    torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-5)
    assert diffusion_loss(model, None, latents, noise, t, cond) < 1e-10


def test_given_parameters_act_and_receive_gradients(model: LoadedModel) -> None:
    latents, noise, t, cond = batch(model)
    own = model.unet.get_parameter(KEY)
    before, value = own.clone(), (own + 0.3).requires_grad_()
    changed = predict_noise(model, {KEY: value}, latents, t, cond)
    loss = diffusion_loss(model, {KEY: value}, latents, noise, t, cond)
    (gradient,) = torch.autograd.grad(loss, value)
    assert torch.equal(own, before)
    own.copy_(value.detach())
    torch.testing.assert_close(changed, predict_noise(model, None, latents, t, cond))
    own.requires_grad_()
    expected = torch.autograd.grad(diffusion_loss(model, None, latents, noise, t, cond), own)[0]
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("unet_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_mixed_dtypes(model: LoadedModel, unet_dtype: torch.dtype) -> None:
    cond = batch(model)[3]
    model.unet.to(unet_dtype)
    value = model.unet.get_parameter(KEY).float().requires_grad_()
    wide = torch.float64 if unet_dtype == torch.float64 else torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        latents, noise, t, _ = batch(model, dtype)
        assert predict_noise(model, {KEY: value}, latents, t, cond).dtype == wide
        loss = diffusion_loss(model, {KEY: value}, latents, noise, t, cond)
        (gradient,) = torch.autograd.grad(loss, value)
        assert (loss.dtype, gradient.dtype) == (wide, torch.float32)
        assert bool(loss.isfinite()) and bool(gradient.isfinite().all())


def test_bare_unet_predicts_epsilon() -> None:
    model = tiny_model("sdxl")
    latents, _, t, cond = batch(model)
    assert torch.equal(predict_noise(model.unet, None, latents, t, cond), predict_noise(model, None, latents, t, cond))


COMMON = {"layers_per_block": 2, "in_channels": 4, "out_channels": 4}
REAL = {
    "sd": COMMON
    | {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": COMMON
    | {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize(("kind", "millions"), [("sd", 859), ("sdxl", 2567)])
def test_real_architectures_on_the_meta_device(kind: str, millions: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**REAL[kind]).to(torch.bfloat16).requires_grad_(False)
        size = unet.config.sample_size
        latents, noise = torch.randn(2, 2, 4, size, size)
        cond = Conditioning(torch.randn(2, 77, unet.config.cross_attention_dim))
        if kind == "sdxl":
            cond = Conditioning(cond.embeds, torch.randn(2, 1280), torch.randn(2, 6))
        t = torch.zeros(2, dtype=torch.int64)
    assert sum(value.numel() for value in unet.parameters()) // 10**6 == millions
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction")
    model = LoadedModel(kind, SimpleNamespace(unet=unet, scheduler=scheduler), kind, "meta")  # type: ignore[arg-type]
    prepare_for_meta(unet, checkpointing=True)
    value = torch.empty_like(unet.get_parameter(KEY), dtype=torch.float32).requires_grad_()
    assert predict_noise(model, {KEY: value}, latents, t, cond).shape == latents.shape
    loss = diffusion_loss(model, {KEY: value}, latents, noise, t, cond)
    assert torch.autograd.grad(loss, value)[0].shape == value.shape
