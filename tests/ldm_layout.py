"""Pipelines in memory under the names of the original single-file layout, for tests of single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from adapter_mu.export.single_file import canonical, original_layout
from adapter_mu.models.files import WEIGHTED, Kind


def ldm_tensors(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a pipeline under the names that single-file checkpoints use."""
    kind: Kind = "sdxl" if hasattr(pipeline, "text_encoder_2") else "sd"
    found: dict[str, Tensor] = {}
    for component in (name for name in WEIGHTED if hasattr(pipeline, name)):
        state = getattr(pipeline, component).state_dict()
        tensors = {canonical(component, name): tensor for name, tensor in state.items()}
        for entry in original_layout(kind, component, tensors):
            found[entry.key] = entry.join([tensors[name] for name in entry.parts])
    return {key: value.contiguous().clone() for key, value in found.items()}


def save_single_file(pipeline: Any, path: Path) -> None:
    """Write a pipeline as one .safetensors file."""
    save_file(ldm_tensors(pipeline), path)
