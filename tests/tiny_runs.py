"""Tiny sets and recipes around the tiny pipelines: what a run is made of, without files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapter_mu.data.sets import LatentSet
from adapter_mu.models import LoadedModel, encode_prompts, unconditional
from adapter_mu.recipe import Recipe, merged, parse
from adapter_mu.simulate import Sets

CAPTIONS = {
    "forget": ["a ring", "a red ring", "a small ring"],
    "related": ["a circle", "a crescent"],
    "unrelated": ["a square", "a star", "a cross"],
}
PROMPTS = {"prompts": ["a ring"], "images": 1}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "concept": "ring",
    "base": {"model": "memory"},
    "data": {"forget": PROMPTS, "related": PROMPTS, "unrelated": PROMPTS},
    "method": {"name": "toy"},
    "adapter": {"kind": "dense", "subset": "cross_attention_kv"},
    "train": {"steps": 4, "lr": 0.01, "batch_size": 2},
}


def tiny_recipe(**changes: Any) -> Recipe:
    """The smallest recipe there is, with changes to its parts."""
    return parse(merged(RECIPE, changes), "recipe tiny")


def tiny_set(model: LoadedModel, captions: list[str], seed: int = 0) -> LatentSet:
    """One random latent a caption."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(captions), 4, 8, 8, generator=generator, dtype=model.dtype)
    return LatentSet(
        latents, captions, encode_prompts(model, captions), unconditional(model, 1), model.num_train_timesteps
    )


def tiny_sets(model: LoadedModel) -> Sets:
    """D_forget, related and unrelated."""
    return Sets(*(tiny_set(model, captions, seed) for seed, captions in enumerate(CAPTIONS.values())))


def nudge(tensors: dict[str, Tensor], size: float = 0.05, seed: int = 1) -> None:
    """Move every tensor a little, in place: at its start an adapter is a special point."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor += size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
