"""Draw latents and pictures with a model's own diffusers pipeline, one seed a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.data.seeds import generator_for
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, unconditional
from adapter_mu.progress import progress

Watch = Callable[[int, Tensor, Tensor], None]
Callback = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]


class PublishedSeed(int):
    """A seed from a published list: the picture starts from what `torch.manual_seed` makes of it, as everybody's does.

    Our own seeds are hashed first, because neighbouring ones should have nothing in common.
    """


def seeds_of(prompts: Sequence[Prompt], first: int) -> list[int]:
    """The seed that each prompt asks for; those that ask for none count up from `first` by their place."""
    return [first + i if prompt.seed is None else PublishedSeed(prompt.seed) for i, prompt in enumerate(prompts)]


def guidance_of(prompts: Sequence[Prompt], usual: float) -> list[float]:
    """The guidance scale that each prompt asks for, `usual` for those that ask for none."""
    return [usual if prompt.guidance is None else prompt.guidance for prompt in prompts]


def initial_noise(model: LoadedModel, seeds: Sequence[int]) -> Tensor:
    """Starting latents (N, C, H, W) before the scheduler's scaling, one generator a picture."""
    return _noise(model, [_generators(seed)[0] for seed in seeds])


def _generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """Of the starting noise and of what a scheduler adds; one and the same for a published seed, as elsewhere."""
    if isinstance(seed, PublishedSeed):
        both = torch.Generator().manual_seed(seed)
        return both, both
    return generator_for(seed, "picture"), generator_for(seed, "sampler")


def _noise(model: LoadedModel, generators: Sequence[torch.Generator]) -> Tensor:
    shape = (model.unet.config.in_channels, model.latent_size, model.latent_size)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def batches(scales: Sequence[float | None], size: int) -> Iterator[list[int]]:
    """Rows of one guidance scale, at most `size` at a time: a pipeline takes one scale a call."""
    for scale in dict.fromkeys(scales):
        rows = [i for i, other in enumerate(scales) if other == scale]
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


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
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float | Sequence[float],
    batch_size: int,
    watch: Watch | None = None,
    label: str = "sampling",
) -> Tensor:
    """Final latents (N, C, H, W) in the VAE's scaled space, fp32 on the CPU; `guidance` for all or one a prompt.

    `watch(first_row, timestep, x_t)` sees every state as the UNet is about to denoise it, in training's scale
    whatever the scheduler's own: the first is pure noise with the first timestep. It needs one guidance for all.
    """
    condition, empty, pipeline = encode_prompts(model, prompts), unconditional(model), model.pipeline
    scheduler = pipeline.scheduler
    pipeline.set_progress_bar_config(disable=True)
    scales = list(guidance) if isinstance(guidance, Sequence) else [guidance] * len(prompts)
    results: dict[int, Tensor] = {}
    for rows in progress(list(batches(scales, batch_size)), label, leave=False):
        part = condition[torch.tensor(rows, device=model.device)]
        generators = [_generators(seeds[row]) for row in rows]
        noise = _noise(model, [first for first, _ in generators]).to(model.device, model.dtype)
        if watch:
            scheduler.set_timesteps(steps)
            first = scheduler.timesteps[0]
            watch(rows[0], first, scheduler.scale_model_input(noise * scheduler.init_noise_sigma, first))
        output = pipeline(
            **_pipeline_inputs(part, empty.expand(len(part))),
            latents=noise,
            generator=[second for _, second in generators],  # for schedulers that add noise
            num_inference_steps=steps,
            guidance_scale=scales[rows[0]],
            output_type="latent",
            callback_on_step_end=_on_step_end(scheduler, watch, rows[0]) if watch else None,
        )
        results |= zip(rows, output.images.float().cpu(), strict=True)
    return torch.stack([results[row] for row in range(len(prompts))])


@torch.no_grad()
def decode(model: LoadedModel, latents: Tensor, batch_size: int) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] from scaled latents."""
    with _safe_vae(model) as vae:
        parts = [
            vae.decode(part.to(model.device, vae.dtype) / vae.config.scaling_factor).sample.float().cpu()
            for part in latents.split(batch_size)
        ]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode(model: LoadedModel, pictures: Iterable[Tensor]) -> Tensor:
    """Scaled latents (N, C, H, W), fp32 on the CPU, of pictures (3, H, W) in [0, 1]; the mean of the VAE's Gaussian."""
    latents = []
    with _safe_vae(model) as vae:
        for picture in progress(pictures, "encoding pictures", leave=False):
            sample = (2 * picture[None] - 1).to(model.device, vae.dtype)
            latents.append(vae.encode(sample).latent_dist.mean.float().cpu() * vae.config.scaling_factor)
    return torch.cat(latents)


@contextmanager
def _safe_vae(model: LoadedModel) -> Iterator[Any]:
    """The VAE; in fp32 meanwhile where its fp16 overflows (SDXL), as the pipelines do."""
    vae, own = model.vae, model.vae.dtype
    if own == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    try:
        yield vae
    finally:
        if vae.dtype != own:
            vae.to(own)
