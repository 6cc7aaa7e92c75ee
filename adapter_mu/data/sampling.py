"""Draw latents and pictures with a model's own diffusers pipeline, one seed a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adapter_mu.data.seeds import generator_for
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, unconditional
from adapter_mu.progress import progress

Watch = Callable[[int, Tensor, Tensor], None]
Callback = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]


def initial_noise(model: LoadedModel, seeds: list[int]) -> Tensor:
    """Starting latents (N, C, H, W) before the scheduler's scaling, one generator a picture."""
    shape = (model.unet.config.in_channels, model.latent_size, model.latent_size)
    return torch.stack([torch.randn(shape, generator=generator_for(seed, "picture")) for seed in seeds])


def _on_step_end(scheduler: Any, watch: Watch, first_row: int) -> Callback:
    """Shows `watch` what a step leaves behind together with the timestep that comes next."""

    def on_step_end(_: Any, step: int, __: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if step + 1 < len(scheduler.timesteps):
            timestep = scheduler.timesteps[step + 1]
            watch(first_row, timestep, scheduler.scale_model_input(state["latents"], timestep))
        return state

    return on_step_end


def _pipeline_inputs(condition: Conditioning, negative: Conditioning) -> dict[str, Tensor | None]:
    inputs: dict[str, Tensor | None] = {"prompt_embeds": condition.embeds, "negative_prompt_embeds": negative.embeds}
    if condition.pooled is not None:
        inputs |= {"pooled_prompt_embeds": condition.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    return inputs


@torch.no_grad()
def sample_latents(
    model: LoadedModel,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int,
    guidance: float,
    batch_size: int,
    watch: Watch | None = None,
    label: str = "sampling",
) -> Tensor:
    """Final latents (N, C, H, W) in the VAE's scaled space, fp32 on the CPU.

    `watch(first_row, timestep, x_t)` sees every state as the UNet is about to denoise it, in training's scale
    whatever the scheduler's own: the first is pure noise with the first timestep.
    """
    condition, empty, pipeline = encode_prompts(model, prompts), unconditional(model), model.pipeline
    scheduler = pipeline.scheduler
    pipeline.set_progress_bar_config(disable=True)
    results = []
    for start in progress(range(0, len(prompts), batch_size), label, leave=False):
        rows = slice(start, start + batch_size)
        part = condition[rows]
        noise = initial_noise(model, seeds[rows]).to(model.device, model.dtype)
        if watch:
            scheduler.set_timesteps(steps)
            first = scheduler.timesteps[0]
            watch(start, first, scheduler.scale_model_input(noise * scheduler.init_noise_sigma, first))
        output = pipeline(
            **_pipeline_inputs(part, empty.expand(len(part))),
            latents=noise,
            generator=[generator_for(seed, "sampler") for seed in seeds[rows]],  # for schedulers that add noise
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
            callback_on_step_end=_on_step_end(scheduler, watch, start) if watch else None,
        )
        results.append(output.images.float().cpu())
    return torch.cat(results)


@torch.no_grad()
def decode(model: LoadedModel, latents: Tensor, batch_size: int) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] from scaled latents."""
    vae, own = model.vae, model.vae.dtype
    if own == torch.float16 and vae.config.force_upcast:  # as the pipelines do: SDXL's VAE overflows in fp16
        vae.to(torch.float32)
    parts = [
        vae.decode(part.to(model.device, vae.dtype) / vae.config.scaling_factor).sample.float().cpu()
        for part in latents.split(batch_size)
    ]
    if vae.dtype != own:
        vae.to(own)
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
