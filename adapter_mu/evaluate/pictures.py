"""Sampled pictures as PNG files, each written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adapter_mu.data.cache import write_picture

SHOWN = 10
MINIMUM_SIDE = 96
BORDER = 1
WHITE = 1.0


def save_picture(picture: Tensor, path: Path) -> None:
    """One picture (3, H, W) in [0, 1] as it is."""
    write_picture(path, _image(picture))


def save_strip(rows: list[Tensor], path: Path) -> None:
    """The first pictures of each row (N, 3, H, W) in [0, 1] side by side, small ones enlarged without smoothing."""
    lines = [torch.cat([F.pad(p, (BORDER,) * 4, value=WHITE) for p in row[:SHOWN]], dim=2) for row in rows]
    width = max(line.shape[2] for line in lines)
    sheet = _image(torch.cat([F.pad(line, (0, width - line.shape[2]), value=WHITE) for line in lines], dim=1))
    factor = max(1, MINIMUM_SIDE // rows[0].shape[-1])
    write_picture(path, sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST))


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy())
