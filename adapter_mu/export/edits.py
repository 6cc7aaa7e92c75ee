"""What an adapter file does to the weights of a base, by component and parameter, without building a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from adapter_mu.errors import ModelError
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.kohya import read_kohya
from adapter_mu.export.layers import Delta, Edit, Factors
from adapter_mu.export.peft_format import PEFT_METADATA
from adapter_mu.export.single_file import canonical
from adapter_mu.export.streaming import StoredFile
from adapter_mu.params.factors import pairs
from adapter_mu.params.files import check_payload, read_metadata

_FORMAT_KEY = "adapter_mu_format"
TRAINED_IN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Edits:
    """The edits of one adapter file."""

    name: str
    kind: str
    """"lora", "low_rank" or "dense"."""
    components: Mapping[str, Mapping[str, Edit]]
    """By component and parameter name (canonical, with `.weight` or `.bias`)."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def base_dtype(self) -> torch.dtype | None:
        """What the base was cast to when the adapter was trained on it; None where nothing is said."""
        return TRAINED_IN.get(self.metadata.get("base_dtype", ""))

    @property
    def count(self) -> int:
        """Number of edited tensors."""
        return sum(len(edits) for edits in self.components.values())


def read_edits(path: Path, base: Checkpoint) -> Edits:
    """An adapter of adapter_mu, or a LoRA in diffusers' or kohya's format, checked against the base's names and shapes.

    Raises:
        ModelError: missing, a pickle, truncated, damaged, of another format, or made for another architecture.
    """
    metadata = read_metadata(path)
    check_payload(path, metadata)
    stored = StoredFile(path).tensors()
    try:
        if metadata.get("kind") == "dense" and _FORMAT_KEY in metadata:
            return _fitting(path, base, "dense", {"unet": {k: Delta(lazy) for k, lazy in stored.items()}}, metadata)
        tensors = {name: lazy.make() for name, lazy in stored.items()}
        if _FORMAT_KEY in metadata:
            kind, components = _own(tensors, metadata)
        elif any(name.startswith("lora_") for name in tensors):
            kind, components = read_kohya(tensors, base)
        else:
            kind, components = "lora", _peft(tensors, metadata)
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path} is no adapter that is understood ({error}): give an adapter of adapter_mu, or a LoRA in the"
            " format of diffusers or kohya."
        ) from error
    return _fitting(path, base, kind, components, metadata)


def _own(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, dict[str, dict[str, Edit]]]:
    kind = metadata["kind"]
    alpha = float(metadata["alpha"]) if kind == "lora" else None
    found = pairs(tensors)
    return kind, {"unet": {f"{layer}.weight": _factors(*pair, alpha) for layer, pair in found.items()}}


def _peft(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, dict[str, Edit]]:
    """Diffusers' LoRA file: `<component>.<layer>.lora_A.weight`, with peft's configuration in its metadata."""
    settings = json.loads(metadata.get(PEFT_METADATA, "{}"))
    components: dict[str, dict[str, Edit]] = {}
    if strangers := [name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise ValueError(f"its tensor {strangers[0]!r} is no factor of a LoRA")
    for full, (down, up) in pairs(tensors).items():
        component, _, layer = full.partition(".")
        alpha = settings.get(f"{component}.lora_alpha")
        alpha = settings.get(f"{component}.alpha_pattern", {}).get(layer, alpha)
        edit = _factors(down, up, alpha, rslora=bool(settings.get(f"{component}.use_rslora")))
        components.setdefault(component, {})[f"{canonical(component, layer)}.weight"] = edit
    return components


def _factors(down: Tensor, up: Tensor, alpha: float | None, *, rslora: bool = False) -> Factors:
    """Scaled by alpha / rank, rslora by alpha / sqrt(rank); an alpha that is not told is the rank."""
    rank = down.shape[0]
    scale = 1.0 if alpha is None else float(alpha) / (sqrt(rank) if rslora else rank)
    return Factors(down.float(), up.float(), scale)


def _fitting(
    path: Path, base: Checkpoint, kind: str, components: Mapping[str, Mapping[str, Edit]], metadata: dict[str, str]
) -> Edits:
    """The edits, if the base has all their weights in their shapes; ModelError otherwise."""
    for component, edits in components.items():
        for name, edit in edits.items():
            weight = base.components.get(component, {}).get(name)
            if weight is None:
                raise ModelError(f"{path} edits {component} {name!r}, which {base.name} does not have: wrong --base?")
            if edit.shape != weight.shape:
                raise ModelError(
                    f"{path} edits {component} {name!r} as {edit.shape}, but in {base.name} it is {weight.shape}:"
                    " wrong --base?"
                )
    return Edits(path.stem, kind, components, metadata)
