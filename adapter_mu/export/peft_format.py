"""LoRA files as diffusers saves them: peft's names behind the component's, peft's configuration in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.export.kohya import pad
from adapter_mu.export.layers import Edit, Factors
from adapter_mu.params.factors import factor_names

PEFT_METADATA = "lora_adapter_metadata"


def peft_file(components: Mapping[str, Mapping[str, Edit]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (fp32) and metadata of a file that `load_lora_weights` opens with the right alpha.

    Raises:
        UserError: an edit is dense.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for component, edits in components.items():
        prefix = f"{component}.text_model" if component.startswith("text_encoder") else component
        factors = {name.removesuffix(".weight"): edit for name, edit in edits.items() if isinstance(edit, Factors)}
        if len(factors) < len(edits):
            raise UserError("a dense delta is no LoRA: export it with --format kohya (ComfyUI), or merge it.")
        rank = max(edit.rank for edit in factors.values())
        for layer, edit in factors.items():
            down, up = factor_names(f"{prefix}.{layer}")
            padded = pad(edit, rank)
            tensors[down], tensors[up] = padded.down, padded.up
        settings |= {f"{component}.{key}": value for key, value in _config(factors, rank).items()}
    return tensors, {PEFT_METADATA: json.dumps(settings, sort_keys=True)}


def _config(factors: Mapping[str, Factors], rank: int) -> dict[str, Any]:
    """What peft's LoraConfig takes; layers scaled differently are named one by one."""
    alphas = {layer: edit.scale * rank for layer, edit in factors.items()}
    usual = next(iter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": usual,
        "alpha_pattern": {layer: alpha for layer, alpha in alphas.items() if alpha != usual},
        "target_modules": sorted(factors),
        "bias": "none",
    }
