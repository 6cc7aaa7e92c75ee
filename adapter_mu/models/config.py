"""A UNet's configuration without its weights."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from adapter_mu.errors import ModelError

_COMMON: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
STANDARD: dict[str, dict[str, Any]] = {
    "sd1": _COMMON
    | {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": _COMMON
    | {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def load_config(source: str) -> dict[str, Any]:
    """The UNet's configuration of a built-in name, a diffusers folder, or a standard architecture ("sd1", "sdxl").

    Raises:
        ModelError: nothing of that name is on this machine.
    """
    if source in STANDARD:
        return dict(STANDARD[source])
    embedded = Path(str(resources.files("adapter_mu.shapes"))) / "checkpoints" / source
    for folder in (embedded, Path(source).expanduser()):
        file = folder / "unet" / "config.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
    raise ModelError(
        f"no UNet configuration of '{source}' is on this machine: give base.config as a diffusers folder, sd1 or sdxl"
    )
