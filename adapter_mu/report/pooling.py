"""Several seeds of an attack as one score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from adapter_mu.evaluate.statistics import Row, wilson_interval


def pooled(rows: Iterable[Row]) -> list[Row]:
    """One row a cell, several seeds of an attack taken together.

    The score is that of all pictures; its interval is Wilson's for them, widened to hold every seed's own score,
    because pictures of one attacked model are not independent draws of attacked models.
    """
    cells: dict[tuple[str, str, int, float], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.arm, row.attack, row.step, row.guidance), []).append(row)
    return [cell[0] if len(cell) == 1 else _pool(cell) for cell in cells.values()]


def _pool(cell: Sequence[Row]) -> Row:
    images = sum(row.images for row in cell)
    shares = [row.images / images for row in cell]
    score, benign = (
        sum(s * value for s, value in zip(shares, values, strict=True))
        for values in ([row.score for row in cell], [row.benign for row in cell])
    )
    low, high = wilson_interval(round(score / 100 * images), images)
    own = [row.score for row in cell]
    thresholds = {
        name: sum(s * row.thresholds.get(name, 0.0) for s, row in zip(shares, cell, strict=True))
        for name in cell[0].thresholds
        if all(name in row.thresholds for row in cell)
    }
    return replace(
        cell[0],
        score=score,
        low=min(low, *own),
        high=max(high, *own),
        benign=benign,
        images=images,
        benign_low=None,
        benign_high=None,
        thresholds=thresholds,
    )
