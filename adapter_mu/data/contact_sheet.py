"""Many small pictures on one, so that a set can be looked at in one go."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from adapter_mu.data.cache import write_picture

CELL, CAPTION, GAP, COLUMNS, SHOWN = 160, 30, 8, 8, 120
LETTERS, LINES = 28, 2


def contact_sheet(pictures: Sequence[tuple[Path, str]], path: Path) -> None:
    """The first 120 pictures as thumbnails with the start of their captions, eight a row, as a PNG at `path`."""
    shown = pictures[:SHOWN]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for i, (picture, caption) in enumerate(shown):
        row, column = divmod(i, columns)
        corner = GAP + column * (CELL + GAP), GAP + row * (CELL + CAPTION + GAP)
        sheet.paste(_thumbnail(picture), corner)
        lines = textwrap.wrap(caption, LETTERS, max_lines=LINES, placeholder=" ...") or [""]
        draw.multiline_text((corner[0], corner[1] + CELL + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    write_picture(path, sheet)


def _thumbnail(path: Path) -> Image.Image:
    """A square of `CELL` pixels; small pictures are enlarged without smoothing."""
    with Image.open(path) as picture:
        enlarge = max(picture.size) < CELL
        how = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
        scale = CELL / max(picture.size)
        wanted = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        small = picture.convert("RGB").resize(wanted, how)
    square = Image.new("RGB", (CELL, CELL), "white")
    square.paste(small, ((CELL - small.width) // 2, (CELL - small.height) // 2))
    return square
