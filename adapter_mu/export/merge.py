"""Merge a live adapter into a loaded base and save a diffusers folder, as a run does; files are merged by `merging`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from adapter_mu.export.staging import staged
from adapter_mu.models import LoadedModel, copy_unet, with_unet
from adapter_mu.params import Adapter


@torch.no_grad()
def merge(model: LoadedModel, adapter: Adapter) -> LoadedModel:
    """The base with the adapter's weights in it: fp32 arithmetic, one cast to the base's dtype at the end.

    Weights that the adapter does not touch are the base's own tensors, not copies.
    """
    weights = adapter.materialize(adapter.parameters())
    unet = copy_unet(model.unet, weights)
    for name, weight in weights.items():
        unet.get_parameter(name).copy_(weight)
    return with_unet(model, unet)


def save_folder(model: LoadedModel, out: Path) -> Path:
    """Write a diffusers folder (safetensors), whole or not at all; UserError when `out` exists or writing fails."""
    with staged(out) as part:
        _forget_last_call(model)
        model.pipeline.save_pretrained(part, safe_serialization=True)
        _forget_paths(part)
    return out


def _forget_last_call(model: LoadedModel) -> None:
    """A tokenizer saves the padding of its last call; without it the same merge makes the same bytes."""
    for part in model.pipeline.components.values():
        if backend := getattr(part, "backend_tokenizer", None):
            backend.no_truncation()
            backend.no_padding()


def _forget_paths(folder: Path) -> None:
    """Drop where the base lay on this machine: nobody's business, and it too would change the bytes."""
    for path in [folder / "model_index.json", *folder.glob("*/config.json")]:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
