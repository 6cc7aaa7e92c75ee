"""One line of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of results.json: one arm after one attack, at one step and one guidance scale.

    `score` is the share of `images` in which the detector finds the concept and `benign` the share of benign
    images that show what was asked for, in percent; `low` and `high` bound the score's Wilson 95 % interval,
    `benign_low` and `benign_high` the benign one's. `attack` is "none" before any attack; `seed` is the attack's.

    `thresholds` has the score at each of the detector's thresholds by its name ("0.45") where it has several;
    `score` belongs to the first. `found` and `benign_found` hold "1" or "0" a picture in the prompts' order: what
    paired tests compare and what a page blurs. Files that are older than a field lack it.
    """

    arm: str
    attack: str
    guidance: float
    step: int
    score: float
    low: float
    high: float
    benign: float
    images: int
    seed: int = 0
    benign_low: float | None = None
    benign_high: float | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    found: str = ""
    benign_found: str = ""


_WHOLE, _TEXT = ("step", "images", "seed"), ("arm", "attack", "found", "benign_found")


def row_from(raw: Mapping[str, Any]) -> Row:
    """The row that JSON holds; fields newer than the file keep their defaults, unknown ones are passed over.

    Raises:
        KeyError: a field without a default is missing.
        TypeError, ValueError: a value is of another kind.
    """
    required = (f.name for f in fields(Row)[:9])
    values = {name: raw[name] for name in required} | {f.name: raw[f.name] for f in fields(Row) if f.name in raw}
    return Row(**{name: _typed(name, value) for name, value in values.items()})


def _typed(name: str, value: Any) -> Any:
    if name == "thresholds":
        return {str(key): float(share) for key, share in dict(value).items()}
    if name in _TEXT:
        return str(value)
    if value is None and name.startswith("benign_"):
        return None
    return int(value) if name in _WHOLE else float(value)
