"""Text encoders and VAE: what they take while the sets are drawn, or all the time where they are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from adapter_mu.live import LiveBytes
from adapter_mu.models import LoadedModel, config_folder, standard_name
from adapter_mu.recipe import Recipe

# Parameters of both kinds' text encoders and VAE, and the VAE's configuration.
PARAMETERS = {"sd1": 123_060_480 + 83_653_863, "sdxl": 123_060_480 + 694_659_840 + 83_653_863}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def encoder_bytes(source: str, dtype: torch.dtype) -> int:
    """Weights of text encoders and VAE; a folder that describes its UNet only counts as none."""
    size = dtype.itemsize
    if name := standard_name(source):
        return PARAMETERS[name] * size
    folder = config_folder(source)
    if not (folder / "vae" / "config.json").is_file():
        return 0
    with torch.device("meta"):
        parts = [_vae(_read(folder / "vae")), *(_text(path) for path in sorted(folder.glob("text_encoder*")))]
    return size * sum(p.numel() for part in parts for p in part.parameters())


def decoding_bytes(recipe: Recipe, source: str, model: LoadedModel) -> int:
    """What decoding the drawn pictures takes besides, where a detector judges them."""
    if not recipe.data.keep_only_shown:
        return 0
    folder = None if standard_name(source) else config_folder(source)
    with torch.device("meta"):
        vae = _vae(VAE if folder is None else _read(folder / "vae")).to(model.dtype).requires_grad_(False)
        side, rows = model.latent_size, recipe.data.sampler.batch_size
        latents = torch.empty(rows, model.unet.config.in_channels, side, side, dtype=model.dtype)
        with LiveBytes(vae.parameters()) as live, torch.no_grad():
            vae.decode(latents)
    return live.peak


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config)


def _text(folder: Path) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_pretrained(folder)
    projected = "CLIPTextModelWithProjection" in (config.architectures or [])
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
