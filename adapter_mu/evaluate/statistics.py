"""How sure a score is, and how one relearning curve is compared with another; everything in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Row:
    """One line of results.json: one arm after one attack, at one step and one guidance scale.

    `score` is the share of `images` in which the detector finds the concept and `benign` the share of benign
    images that show what was asked for, in percent; `low` and `high` bound the score's Wilson 95 % interval.
    `attack` is "none" before any attack.
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


def wilson_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true share lies when `hits` of `total` images show the concept.

    Wilson's score interval (1927) without continuity correction: unlike the normal one it neither leaves
    [0, 100] nor shrinks to nothing at 0 of `total`, where an unlearned model lives.

    Returns:
        (low, high) in percent.

    Raises:
        ValueError: `total` is not positive, `hits` is not in 0..total, or `confidence` is not in (0, 1).
    """
    if total < 1 or not 0 <= hits <= total or not 0 < confidence < 1:
        raise ValueError(f"no Wilson interval for {hits} of {total} at confidence {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / total
    shrink = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the two ends the bound is exact; rounding would leave 1e-17 there.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == total else centre + half
    return 100 * low, 100 * high


def area_under_curve(steps: Sequence[int], scores: Sequence[float]) -> float:
    """The plain mean of a relearning curve's scores at the given attack steps.

    By this project's definition the steps are 50, 100, 200 and 300, and each counts the same however far
    apart they lie: early relearning, where defences differ, is not drowned by the long tail.

    Args:
        steps: Attack steps, strictly increasing, one for each score.
        scores: Scores in percent at those steps.

    Returns:
        The area in percent: 0 never relearned, 100 back at once.

    Raises:
        ValueError: no steps, steps that do not increase, or another number of scores.
    """
    if not steps or len(steps) != len(scores) or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"a curve needs one score for each of its increasing steps: {list(steps)}, {list(scores)}")
    return math.fsum(scores) / len(scores)


def area_error(scores: Sequence[float], images: Sequence[int]) -> float:
    """Standard error, in points, of `area_under_curve` from the finite number of images alone.

    It does not know how much another seed of the unlearning or of the attack would change the curve. Two
    hits and two misses are added to each score (Agresti and Coull 1998), so that 0 of 200 is not certain.
    """
    variance = 0.0
    for score, count in zip(scores, images, strict=True):
        share = (score / 100 * count + 2) / (count + 4)
        variance += share * (1 - share) / (count + 4)
    return 100 * math.sqrt(variance) / len(scores)


def relative_area(steps: Sequence[int], scores: Sequence[float], reference: Sequence[float]) -> float | None:
    """`area_under_curve` of `scores` over that of `reference` at the same steps; None when the latter is 0."""
    area, reference_area = area_under_curve(steps, scores), area_under_curve(steps, reference)
    return area / reference_area if reference_area else None
