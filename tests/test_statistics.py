"""Intervals against published values and exact coverage; areas against their definition."""

from __future__ import annotations

import math
import random

import pytest

from adapter_mu.evaluate.statistics import area_error, area_under_curve, relative_area, wilson_interval


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_matches_newcombe_1998_table_1_method_3(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=0.006)


def test_wilson_bounds_solve_the_score_equation() -> None:
    low, high = wilson_interval(37, 200, confidence=0.9)
    for bound in (low / 100, high / 100):
        z = (37 / 200 - bound) / math.sqrt(bound * (1 - bound) / 200)
        assert abs(z) == pytest.approx(1.6448536, abs=1e-6)


def test_wilson_is_symmetric_and_ends_exactly() -> None:
    assert wilson_interval(0, 200)[0] == 0
    assert wilson_interval(200, 200)[1] == 100
    low, high = wilson_interval(30, 200)
    assert wilson_interval(170, 200) == pytest.approx((100 - high, 100 - low))


@pytest.mark.parametrize("total", [50, 200])
def test_wilson_covers_the_truth_as_often_as_it_says(total: int) -> None:
    """Exact coverage by summing binomial probabilities: 95 % on average, never far below."""
    bounds = [wilson_interval(hits, total) for hits in range(total + 1)]
    coverage = []
    for truth in (i / 200 for i in range(4, 197)):
        covered = [hits for hits, (low, high) in enumerate(bounds) if low <= 100 * truth <= high]
        coverage.append(math.fsum(math.comb(total, k) * truth**k * (1 - truth) ** (total - k) for k in covered))
    assert 0.94 < sum(coverage) / len(coverage) < 0.96
    assert min(coverage) > 0.88


@pytest.mark.parametrize(("hits", "total", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_refuses_impossible_counts(hits: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no Wilson interval"):
        wilson_interval(hits, total, confidence)


def test_area_is_the_plain_mean_whatever_the_spacing() -> None:
    assert area_under_curve([50, 100, 200, 300], [10, 20, 60, 90]) == 45


def test_relative_area() -> None:
    steps = [50, 100, 200, 300]
    assert relative_area(steps, [10, 20, 60, 90], [80, 95, 97, 98]) == pytest.approx(45 / 92.5)
    assert relative_area(steps, [0, 0, 0, 1], [0, 0, 0, 0]) is None


@pytest.mark.parametrize(("steps", "scores"), [([], []), ([50, 50], [1, 2]), ([100, 50], [1, 2]), ([50], [1, 2])])
def test_area_refuses_what_is_no_curve(steps: list[int], scores: list[float]) -> None:
    with pytest.raises(ValueError, match="increasing steps"):
        area_under_curve(steps, scores)


def test_area_error_matches_simulated_sampling() -> None:
    shares, images = [0.1, 0.4, 0.7, 0.95], 200
    draw = random.Random(0)
    areas = []
    for _ in range(1500):
        scores = [100 * sum(draw.random() < share for _ in range(images)) / images for share in shares]
        areas.append(area_under_curve([1, 2, 3, 4], scores))
    mean = sum(areas) / len(areas)
    spread = math.sqrt(sum((area - mean) ** 2 for area in areas) / (len(areas) - 1))
    assert area_error([100 * share for share in shares], [images] * 4) == pytest.approx(spread, rel=0.06)
    assert area_error([0.0], [200]) > 0
