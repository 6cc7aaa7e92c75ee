"""Strips of sampled pictures as PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

SHOWN = 10
MINIMUM_SIDE = 96
GAP = 4


def save_strip(rows: list[Tensor], path: Path) -> None:
    """The first pictures of each row (N, 3, H, W) in [0, 1] side by side, small ones enlarged without smoothing."""
    side = rows[0].shape[-1]
    framed = [
        torch.cat([torch.nn.functional.pad(p, (GAP // 4,) * 4, value=1.0) for p in row[:SHOWN]], dim=2) for row in rows
    ]
    image = Image.fromarray((torch.cat(framed, dim=1).permute(1, 2, 0) * 255).round().byte().numpy())
    factor = max(1, MINIMUM_SIDE // side)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(staged, "PNG")
    staged.replace(path)
