"""How one relearning curve is compared with another; everything in percent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from adapter_mu.evaluate.statistics.bootstrap import Interval, Marks, bootstrap, mean_interval


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


def area_interval(curve: Marks, *, seed: int = 0) -> Interval:
    """`area_under_curve` of pictures (steps, N) with its bootstrap interval, in percent."""
    return mean_interval(100 * curve.mean(axis=0), seed=seed)


def area_difference(curve: Marks, reference: Marks, *, seed: int = 0) -> Interval:
    """The difference of two areas over the same steps and pictures (steps, N), paired, in points.

    Raises:
        ValueError: other steps or other pictures.
    """
    if curve.shape != reference.shape:
        raise ValueError(f"paired curves need the same steps and pictures, not {curve.shape} and {reference.shape}")
    return mean_interval(100 * (curve - reference).mean(axis=0), seed=seed)


def steps_to(steps: Sequence[int], scores: Sequence[float], target: float) -> float:
    """The attack step at which the score first reaches `target`, straight lines between the points; inf for never.

    Args:
        steps: Attack steps, strictly increasing; 0 with the score before the attack may stand first.
        scores: Scores in percent at those steps.
        target: The score in percent.

    Raises:
        ValueError: as in `area_under_curve`.
    """
    area_under_curve(steps, scores)
    if scores[0] >= target:
        return float(steps[0])
    for (start, below), (end, above) in itertools.pairwise(zip(steps, scores, strict=True)):
        if above >= target:
            return start + (end - start) * (target - below) / (above - below)
    return math.inf


def steps_to_interval(steps: Sequence[int], curve: Marks, target: float, *, seed: int = 0) -> Interval:
    """`steps_to` of pictures (steps, N) with its bootstrap interval; inf where a resample never gets there."""
    return bootstrap(lambda part: steps_to(steps, list(100 * part.mean(axis=1)), target), curve, seed=seed)
