"""What a run comes down to: the worst case of every arm, and the area under every relearning curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapter_mu.evaluate.statistics import Row, area_error, area_under_curve, steps_to
from adapter_mu.report.pooling import pooled
from adapter_mu.report.rows import BEFORE, arms, attacks, is_base, plain_twin, select, worst

HALF = 50.0
SURE = 1.96  # standard errors to each side: 95 %


@dataclass(frozen=True)
class Area:
    """The mean of an arm's worst scores along one attack, in percent, with its 95 % interval from the pictures alone.

    `ratio` is the same over that of the plainly unlearned arm; `half` is the attack step at which the curve first
    reaches 50 %, between two measured steps by a straight line, None where it stays below.
    """

    arm: str
    attack: str
    value: float
    low: float
    high: float
    ratio: float | None
    half: float | None
    last: int


def worst_cases(rows: Sequence[Row]) -> list[Row]:
    """The row of every arm but the base at the attack, step and guidance scale where its score is highest."""
    cells = pooled(rows)
    return [worst([row for row in cells if row.arm == arm]) for arm in arms(cells) if not is_base(arm)]


def areas(rows: Sequence[Row]) -> list[Area]:
    """The area of every arm and attack; an attack that was not measured at all its steps has none."""
    cells = pooled(rows)
    found = {
        (arm, attack): area for attack in attacks(cells) for arm in arms(cells) if (area := _area(cells, arm, attack))
    }
    return [_compared(area, found.get((plain_twin(area.arm), area.attack))) for area in found.values()]


def _area(cells: Sequence[Row], arm: str, attack: str) -> Area | None:
    curve, steps = worst_curve(cells, arm, attack), sorted({row.step for row in cells if row.attack == attack})
    if [row.step for row in curve] != steps:
        return None
    scores = [row.score for row in curve]
    value, error = area_under_curve(steps, scores), area_error(scores, [row.images for row in curve])
    before = select(cells, arm, BEFORE)
    whole = [*([worst(before)] if before else []), *curve]
    half = steps_to([row.step for row in whole], [row.score for row in whole], HALF)
    low, high = max(0.0, value - SURE * error), min(100.0, value + SURE * error)
    return Area(arm, attack, value, low, high, None, half if math.isfinite(half) else None, steps[-1])


def worst_curve(cells: Sequence[Row], arm: str, attack: str) -> list[Row]:
    """The worse guidance scale at every step of an attack, by step."""
    rows = select(cells, arm, attack)
    return [worst([row for row in rows if row.step == step]) for step in sorted({row.step for row in rows})]


def _compared(area: Area, reference: Area | None) -> Area:
    ratio = area.value / reference.value if reference and reference.value and reference.arm != area.arm else None
    return Area(area.arm, area.attack, area.value, area.low, area.high, ratio, area.half, area.last)
