"""Adapters of every kind over the shapes checkpoints, large enough to be seen, and what stock diffusers draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from adapter_mu.data.cache import fingerprint
from adapter_mu.models import LoadedModel
from adapter_mu.params import Adapter, LowRank, make_adapter, save_adapter

PIPELINES: dict[str, Any] = {"shapes-sd": StableDiffusionPipeline, "shapes-sdxl": StableDiffusionXLPipeline}
KINDS = ("lora", "low_rank", "dense")
PROMPTS = ["a photo of a ring", "a blue star on a white background"]


def adapter_of(model: LoadedModel, kind: str, *, rank: int = 3, alpha: float = 7.5, seed: int = 0) -> Adapter:
    """Over every layer that the kind can edit, convolutions included, with alpha different from the rank."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "low_rank":
        layers = [(n, m) for n, m in model.unet.named_modules() if "attn2.to_" in n or n.endswith("conv1")]
        adapter: Adapter = LowRank(
            model.unet,
            "what a closed form edits",
            {
                n: drawn_factors(m.weight, 1 + i % 3, generator)
                for i, (n, m) in enumerate(layers)
                if hasattr(m, "weight")
            },
        )
        return adapter
    adapter = make_adapter(model.unet, kind, "full", rank=rank, alpha=alpha, seed=seed)
    with torch.no_grad():
        for theta in adapter.parameters().values():
            theta += 0.02 * torch.randn(theta.shape, generator=generator)
    return adapter


def drawn_factors(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(down, up) of the layer's shapes."""
    down = 0.3 * torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
    return down, 0.3 * torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=generator)


def saved(adapter: Adapter, model: LoadedModel, folder: Path, **facts: str) -> Path:
    """As a run saves it."""
    path = folder / "adapter.safetensors"
    known = {"base": model.name, "base_hash": fingerprint(model.unet), "concept": "ring", "method": "esd"}
    save_adapter(adapter, path, known | facts)
    return path


def noise(pipeline: Any, model: LoadedModel) -> Tensor:
    """Noise predictions of the pipeline's UNet for real prompts at three timesteps, latents from a fixed seed."""
    from adapter_mu.models import encode_prompts

    generator = torch.Generator().manual_seed(3)
    x, t = (
        torch.randn(2, 4, 8, 8, generator=generator).repeat(3, 1, 1, 1),
        torch.tensor([10, 400, 900]).repeat_interleave(2),
    )
    cond = encode_prompts(model, PROMPTS * 3)
    added = None if cond.pooled is None else {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    with torch.no_grad():
        predicted: Tensor = pipeline.unet(x, t, cond.embeds, added_cond_kwargs=added).sample
    return predicted


def pictures(pipeline: Any) -> Tensor:
    """(N, 3, 32, 32) in [0, 255], not rounded."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    drawn: Tensor = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=4.0, generator=generator, output_type="pt"
    ).images
    return 255 * drawn


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parts(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
