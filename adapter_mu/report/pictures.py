"""Picture strips of a run, arranged for the page and embedded in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.rows import BASE, BEFORE, arms, attacks, select

WIDEST = 1400


@dataclass(frozen=True)
class Strip:
    """One strip: `source` is a data URI, `step` 0 is before the attack."""

    source: str
    step: int
    score: float
    benign: float


@dataclass(frozen=True)
class Gallery:
    """The strips of one attack at one guidance scale, by arm; the base is shown as it is before any attack."""

    attack: str
    guidance: float
    base: list[Strip]
    arms: dict[str, list[Strip]]


def galleries(run: Path, rows: Sequence[Row]) -> list[Gallery]:
    """A gallery for each attack and guidance scale that has strips in `run`/pictures, missing strips left out."""
    strips = {
        (row.arm, row.attack, row.step, row.guidance): strip for row in rows if (strip := _strip(run / "pictures", row))
    }

    def shown(arm: str, attack: str, guidance: float) -> list[Strip]:
        wanted = select(rows, arm, BEFORE) + select(rows, arm, attack)
        keys = [(arm, row.attack, row.step, guidance) for row in wanted if row.guidance == guidance]
        return [strips[key] for key in keys if key in strips]

    found = [
        Gallery(
            attack,
            guidance,
            shown(BASE, BEFORE, guidance)[:1],
            {arm: kept for arm in arms(rows) if arm != BASE and (kept := shown(arm, attack, guidance))},
        )
        for attack in attacks(rows)
        for guidance in sorted({row.guidance for row in rows})
    ]
    return [gallery for gallery in found if gallery.base or gallery.arms]


def data_uri(png: bytes) -> str:
    """PNG bytes as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _strip(folder: Path, row: Row) -> Strip | None:
    names = dict.fromkeys(
        f"{row.arm}_{row.attack}_{row.step}_{scale}.png" for scale in (f"{row.guidance:g}", row.guidance)
    )
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    return None if path is None else Strip(data_uri(_fitting(path)), row.step, row.score, row.benign)


def _fitting(path: Path) -> bytes:
    """The file's bytes, or a smaller PNG where it is wider than a page can show."""
    with Image.open(path) as image:
        if image.width <= WIDEST:
            return path.read_bytes()
        small = image.convert("RGB").resize((WIDEST, image.height * WIDEST // image.width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
