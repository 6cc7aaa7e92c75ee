"""Picture strips cut into single pictures, small enough together for one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adapter_mu.evaluate.pictures import BORDER, MINIMUM_SIDE, SHOWN

LINES = 2  # the concept's pictures over the benign ones
LATENT = 8  # a diffusion model's pictures are multiples of this wide
SMALL = 64  # up to this width pictures are kept as they are, every pixel of them
BUDGET = 9_000_000  # bytes of all pictures together as text
FORMS = ((192, SHOWN), (160, SHOWN), (128, SHOWN), (96, SHOWN), (96, 6), (96, 4), (64, 4), (64, 2))
SAMPLED = 12


@dataclass(frozen=True)
class Form:
    """How pictures enter the page: at most `side` pixels wide, the first `shown` of a line."""

    side: int
    shown: int


def cut(path: Path, images: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """The concept's (of which there are `images` in all) and the benign pictures of a strip, without borders."""
    with Image.open(path) as file:
        sheet = file.convert("RGB")
    side = sheet.height // LINES
    columns = min(SHOWN, sheet.width // side) if side else 0
    factor = _enlarged(side)
    lines = [[_tile(sheet, side, column, line, factor) for column in range(columns)] for line in range(LINES)]
    concept, benign = lines[0][: min(images, SHOWN)], lines[1]
    while benign and benign[-1].getextrema() == ((255, 255),) * 3:  # where one line is shorter, the rest is blank
        benign.pop()
    return concept, benign


def _tile(sheet: Image.Image, side: int, column: int, line: int, factor: int) -> Image.Image:
    left, top, edge = column * side, line * side, BORDER * factor
    tile = sheet.crop((left + edge, top + edge, left + side - edge, top + side - edge))
    # Enlarged pictures have every pixel `factor` times: one of each says the same.
    size = (max(1, tile.width // factor), max(1, tile.height // factor))
    return tile if factor == 1 else tile.resize(size, Image.Resampling.NEAREST)


def _enlarged(side: int) -> int:
    """How many times `save_strip` enlarged pictures whose tiles are `side` wide with their borders."""
    for factor in range(MINIMUM_SIDE, 1, -1):
        width = side // factor - 2 * BORDER
        if side % factor == 0 and width > 0 and width % LATENT == 0 and MINIMUM_SIDE // width == factor:
            return factor
    return 1


def encode(image: Image.Image, side: int) -> str:
    """A data URI: small pictures without loss, large ones at most `side` wide."""
    buffer = io.BytesIO()
    if image.width <= SMALL:
        image.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    else:
        reduced = image.copy()
        reduced.thumbnail((side, side), Image.Resampling.HAMMING)
        reduced.save(buffer, "WEBP", quality=80, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def fitting_form(strips: Sequence[Path], images: int = SHOWN, budget: int = BUDGET) -> Form:
    """The best form in which all strips together stay within the budget, judged by a few of them."""
    some = strips[:: max(1, len(strips) // SAMPLED)]
    tried = [tile for path in some for line in cut(path, images) for tile in line[:2]]
    for side, shown in FORMS:
        sizes = [len(encode(tile, side)) for tile in tried]
        mean = sum(sizes) / max(1, len(sizes))
        if mean * LINES * shown * len(strips) <= budget:
            return Form(side, shown)
    return Form(*FORMS[-1])
