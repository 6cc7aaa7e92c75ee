"""What the rows of a run say about its arms: differences, curves and worst cases, as lists for results.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adapter_mu.evaluate.statistics import Row, area_interval, marks, paired_difference, steps_to_interval
from adapter_mu.evaluate.statistics.bootstrap import Marks

Item = dict[str, Any]
BEFORE = "none"
TARGET = 50.0  # a concept that comes back in every second picture is back


def summary(rows: Sequence[Row], reference: str | None) -> dict[str, list[Item]]:
    """The lists `differences` (to the arm `reference`), `curves` and `worst` of results.json."""
    against = differences(rows, reference) if reference else []
    return {"differences": against, "curves": curves(rows), "worst": worst_cases(rows)}


def differences(rows: Sequence[Row], reference: str) -> list[Item]:
    """Every cell of the other arms against the reference's, paired over pictures; cells that both have only.

    Several seeds of an attack are averaged picture by picture, so that a picture counts once.
    """
    cells, items = _cells(rows), []
    for (arm, attack, step, guidance), found in cells.items():
        other = cells.get((reference, attack, step, guidance))
        if arm == reference or other is None or found.shape != other.shape:
            continue
        value, low, high = paired_difference(found, other)
        place = {"arm": arm, "reference": reference, "attack": attack, "step": step, "guidance": guidance}
        items.append({**place, "value": value, "low": low, "high": high, "images": len(found)})
    return items


def curves(rows: Sequence[Row], target: float = TARGET) -> list[Item]:
    """Every relearning curve's area and its steps to `target` percent, with intervals; null for never."""
    cells = _cells(rows)
    items = []
    for arm, attack, guidance in dict.fromkeys((c[0], c[1], c[3]) for c in cells if c[1] != BEFORE):
        steps = sorted(step for a, b, step, g in cells if (a, b, g) == (arm, attack, guidance))
        curve = np.stack([cells[arm, attack, step, guidance] for step in steps])
        before = cells.get((arm, BEFORE, 0, guidance))
        whole = curve if before is None or len(before) != curve.shape[1] else np.stack([before, *curve])
        area = area_interval(curve)
        reached = steps_to_interval([0, *steps][-len(whole) :], whole, target)
        items.append(
            {"arm": arm, "attack": attack, "guidance": guidance, "steps": steps, "target": target}
            | _named("area", area)
            | _named("steps_to", reached)
            | {"images": curve.shape[1]}
        )
    return items


def worst_cases(rows: Sequence[Row]) -> list[Item]:
    """The headline of each arm: its highest score over attacks, steps and guidance scales, and where that was.

    The score of a row belongs to the detector's lowest threshold, so this is the worst over thresholds too.
    """
    items = []
    for arm in dict.fromkeys(row.arm for row in rows):
        row = max((row for row in rows if row.arm == arm), key=lambda row: row.score)
        where = {"attack": row.attack, "step": row.step, "guidance": row.guidance, "seed": row.seed}
        items.append({"arm": arm, "value": row.score, "low": row.low, "high": row.high, **where})
    return items


def _cells(rows: Iterable[Row]) -> dict[tuple[str, str, int, float], Marks]:
    """What was found by arm, attack, step and guidance, (N,), the mean over attack seeds; rows without marks left out.

    Rows of one cell that count other pictures cannot be averaged: the first seed's stay.
    """
    found: dict[tuple[str, str, int, float], list[Marks]] = {}
    for row in rows:
        if row.found:
            found.setdefault((row.arm, row.attack, row.step, row.guidance), []).append(marks(row.found))
    return {cell: np.mean([one for one in every if len(one) == len(every[0])], axis=0) for cell, every in found.items()}


def _named(name: str, interval: Sequence[float]) -> Item:
    """JSON has no infinity: null says never."""
    value, low, high = (number if math.isfinite(number) else None for number in interval)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
