"""What exported files say about themselves: Stability's modelspec 1.0.1 and the `ss_*` keys of kohya's tools."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from torch import Tensor

from adapter_mu import __version__
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.edits import Edits
from adapter_mu.export.streaming import PENDING
from adapter_mu.models.files import Kind

_ARCHITECTURES: dict[Kind, str] = {"sd": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}
_RESOLUTIONS: dict[Kind, str] = {"sd": "512x512", "sdxl": "1024x1024"}
_BASE_VERSIONS: dict[Kind, str] = {"sd": "sd_v1", "sdxl": "sdxl_base_v1-0"}
_ORIGINAL = "https://github.com/Stability-AI/generative-models"
_FACTS = ("concept", "method", "recipe", "recipe_hash", "base", "base_hash")


def modelspec(base: Checkpoint, adapters: Sequence[Edits], *, lora: bool, original: bool) -> dict[str, str]:
    """The modelspec keys, and ours about what was erased.

    Args:
        base: the base.
        adapters: what was merged or is exported.
        lora: whether the file is an adapter, not a checkpoint.
        original: whether its names are of the original layout rather than of diffusers.
    """
    erased = ", ".join(sorted({edits.metadata["concept"] for edits in adapters if "concept" in edits.metadata}))
    title = f"{base.name} without {erased}" if erased else f"{base.name} with {', '.join(e.name for e in adapters)}"
    words = {
        "sai_model_spec": "1.0.1",
        "architecture": _ARCHITECTURES[base.kind] + ("/lora" if lora else ""),
        "implementation": _ORIGINAL if original else "diffusers",
        "title": title,
        "resolution": _RESOLUTIONS[base.kind],
        "description": f"{'Adapter' if lora else 'Merged'} by adapter_mu {__version__}.",
        "date": _today(),
        "hash_sha256": f"0x{PENDING}",
        "merged_from": ", ".join([base.name, *(edits.name for edits in adapters)]),
        "prediction_type": "v" if _prediction(base) == "v_prediction" else "epsilon",
    }
    if lora:
        words.pop("merged_from")
    spec = {f"modelspec.{key}": value for key, value in words.items()}
    return spec | {f"adapter_mu.{key}": value for key, value in _facts(adapters).items()}


def network(base: Checkpoint, edits: Edits, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The `ss_*` keys that kohya's tools and the web UIs read of a LoRA in kohya's format."""
    downs = {name: tensor for name, tensor in tensors.items() if name.endswith(".lora_down.weight")}
    words = {
        "ss_v2": "False",
        "ss_base_model_version": _BASE_VERSIONS[base.kind],
        "ss_sd_model_name": base.name,
        "ss_output_name": edits.name,
        "sshs_model_hash": PENDING,
    }
    if downs:
        rank = next(iter(downs.values())).shape[0]
        alpha = float(next(tensor for name, tensor in tensors.items() if name.endswith(".alpha")))
        words |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": f"{alpha:g}",
        }
        if any(tensor.dim() == 4 and tensor.shape[-1] > 1 for tensor in downs.values()):
            words["ss_network_args"] = json.dumps({"conv_dim": str(rank), "conv_alpha": f"{alpha:g}"})
    return words


def _facts(adapters: Sequence[Edits]) -> dict[str, str]:
    found = {key: [edits.metadata[key] for edits in adapters if key in edits.metadata] for key in _FACTS}
    return {key: ", ".join(dict.fromkeys(values)) for key, values in found.items() if values}


def _prediction(base: Checkpoint) -> str:
    config = json.loads((base.folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return str(config.get("prediction_type", "epsilon"))


def _today() -> str:
    """ISO-8601 date; SOURCE_DATE_EPOCH makes it reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return (datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)).date().isoformat()
