"""A UNet's configuration without its weights."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from adapter_mu.errors import ModelError
from adapter_mu.models.files import file_kind

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


# Hub ids whose architecture is known without asking the hub.
KNOWN = {
    "CompVis/stable-diffusion-v1-4": "sd1",
    "runwayml/stable-diffusion-v1-5": "sd1",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


def standard_name(source: str) -> str | None:
    """Either "sd1" or "sdxl", for these words, a known hub id or a single file; None for what has a folder."""
    if source in STANDARD:
        return source
    path = Path(source).expanduser()
    if path.is_file():
        return {"sd": "sd1", "sdxl": "sdxl"}[file_kind(path)]
    return None if path.is_dir() else KNOWN.get(source)


def config_folder(source: str) -> Path:
    """The folder of a built-in name or of a diffusers folder that holds the UNet's configuration.

    Raises:
        ModelError: nothing of that name is on this machine.
    """
    embedded = Path(str(resources.files("adapter_mu.shapes"))) / "checkpoints" / source
    for folder in (embedded, Path(source).expanduser()):
        if (folder / "unet" / "config.json").is_file():
            return folder
    raise ModelError(
        f"no UNet configuration of '{source}' is on this machine: give base.config as a diffusers folder, sd1 or sdxl"
    )


def load_config(source: str) -> dict[str, Any]:
    """The UNet's configuration: of a built-in name, a diffusers folder, a single file, a known hub id, "sd1" or "sdxl".

    Raises:
        ModelError: nothing of that name is on this machine.
    """
    if name := standard_name(source):
        return dict(STANDARD[name])
    text = (config_folder(source) / "unet" / "config.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
