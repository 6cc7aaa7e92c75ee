"""How sure a share is, and how many pictures make it as sure as wanted; everything in percent."""

from __future__ import annotations

import math
from statistics import NormalDist


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


def images_for(half_width: float, confidence: float = 0.95) -> int:
    """How many pictures give every share a Wilson interval of at most +- `half_width` points.

    The widest interval is that of a share of one half, z / (2 sqrt(n + z^2)), which is solved for n.

    Raises:
        ValueError: `half_width` is not in (0, 50) or `confidence` not in (0, 1).
    """
    if not 0 < half_width < 50 or not 0 < confidence < 1:
        raise ValueError(f"no number of images gives +- {half_width} points at confidence {confidence}")
    square = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    return max(1, math.ceil(square * ((50 / half_width) ** 2 - 1)))
