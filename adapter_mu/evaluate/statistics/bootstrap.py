"""Percentile bootstrap over pictures: how far a number would move with other prompts and other noise.

Every model is asked for the same pictures, so a resample takes the same ones of each: what a prompt is worth cancels
out of a difference. The other random things (another attack, another training) are not in these intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapter_mu.evaluate.statistics.intervals import wilson_interval

RESAMPLES, CONFIDENCE = 2000, 0.95
Marks = NDArray[np.float64]
"""What was found of each picture: 0 or 1, or its mean over attack seeds; pictures along the last axis."""


class Interval(NamedTuple):
    """A number and the two ends of its 95 % interval."""

    value: float
    low: float
    high: float


def marks(text: str) -> Marks:
    """`Row.found` as numbers; ValueError for anything but 0 and 1."""
    if set(text) - {"0", "1"}:
        raise ValueError(f"marks are 0 and 1, one a picture, not {text[:20]!r}")
    return np.array([float(one) for one in text])


def bootstrap(
    statistic: Callable[[Marks], float], pictures: Marks, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """`statistic` of `pictures` (..., N) with its percentile interval (Efron 1979); the same seed, the same interval.

    Raises:
        ValueError: there are no pictures.
    """
    if (count := pictures.shape[-1]) < 1:
        raise ValueError("no pictures to resample")
    generator, value = np.random.default_rng(seed), statistic(pictures)
    drawn = [statistic(pictures[..., generator.integers(count, size=count)]) for _ in range(resamples)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="nearest")  # no mean of a number and never
    return Interval(value, float(low), float(high))


def mean_interval(values: Sequence[float] | Marks, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of one number a picture."""
    return bootstrap(lambda part: float(part.mean()), np.asarray(values, float), resamples=resamples, seed=seed)


def paired_difference(found: Marks, reference: Marks, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """How many points more of the pictures (N,) show the concept than of the reference's, in percent.

    Where no picture differs a bootstrap cannot see that one might; the interval is then Wilson's for 0 of N, to
    both sides.

    Raises:
        ValueError: not the same pictures, or none.
    """
    if found.shape != reference.shape:
        raise ValueError(f"a paired difference needs the same pictures, not {len(found)} and {len(reference)}")
    gap = found - reference
    value, low, high = mean_interval(100 * gap, resamples=resamples, seed=seed)
    if not gap.any():
        unseen = wilson_interval(0, len(gap))[1]
        low, high = -unseen, unseen
    return Interval(value, low, high)
