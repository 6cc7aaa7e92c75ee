"""Draw latents and pictures with a model's own diffusers pipeline, one seed a picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from adapter_mu.data.seeds import generator_for
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, unconditional

Watch = Callable[[int, Tensor, Tensor], None]


def initial_noise(model: LoadedModel, seeds: list[int]) -> Tensor:
    """Starting latents (N, C, H, W) before the scheduler's scaling, one generator a picture."""
    shape = (model.unet.config.in_channels, model.latent_size, model.latent_size)
    return torch.stack([torch.randn(shape, generator=generator_for(seed, "picture")) for seed in seeds])


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
    """Final latents (N, C, H, W) as the VAE's scaled space holds them.

    `watch(first_row, timestep, latents)` sees every state before it is denoised: the first is pure noise
    with the first timestep.
    """
    condition, pipeline = encode_prompts(model, prompts), model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    results = []
    for start in tqdm(range(0, len(prompts), batch_size), desc=label, leave=False, disable=None):
        rows = slice(start, start + batch_size)
        part = condition[rows]

        def remember(
            pipe: object, step: int, _: object, state: dict[str, Tensor], start: int = start
        ) -> dict[str, Tensor]:
            if watch and step + 1 < len(pipeline.scheduler.timesteps):
                watch(start, pipeline.scheduler.timesteps[step + 1], state["latents"])
            return state

        noise = initial_noise(model, seeds[rows]).to(model.device, model.dtype)
        if watch:
            pipeline.scheduler.set_timesteps(steps)
            watch(start, pipeline.scheduler.timesteps[0], noise * pipeline.scheduler.init_noise_sigma)
        output = pipeline(
            **_pipeline_inputs(part, unconditional(model, len(part))),
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
            callback_on_step_end=remember,
        )
        results.append(output.images.float().cpu())
    return torch.cat(results)


@torch.no_grad()
def decode(model: LoadedModel, latents: Tensor, batch_size: int) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] from scaled latents."""
    vae = model.vae
    parts = [
        vae.decode(part.to(model.device, vae.dtype) / vae.config.scaling_factor).sample.float().cpu()
        for part in latents.split(batch_size)
    ]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
