"""Intervals against published values and exact coverage; areas against their definition."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from adapter_mu.evaluate.comparisons import curves, differences, summary, worst_cases
from adapter_mu.evaluate.statistics import (
    Row,
    area_difference,
    area_error,
    area_interval,
    area_under_curve,
    images_for,
    marks,
    mean_interval,
    paired_difference,
    relative_area,
    row_from,
    steps_to,
    steps_to_interval,
    wilson_interval,
)


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


@pytest.mark.parametrize("half_width", [1.0, 2.5, 5.0, 10.0, 20.0])
def test_images_for_is_the_smallest_number_that_is_enough(half_width: float) -> None:
    def widest(total: int) -> float:
        low, high = wilson_interval(total // 2, total)
        return (high - low) / 2

    count = images_for(half_width)
    even = count + count % 2
    assert widest(even) <= half_width < widest(even - 2)


def test_images_for_known_and_refused_numbers() -> None:
    assert images_for(5) == 381
    for wrong in (0.0, 50.0, -1.0):
        with pytest.raises(ValueError, match="no number of images"):
            images_for(wrong)


def test_the_bootstrap_of_a_share_has_the_binomials_quantiles() -> None:
    """Resampling 0s and 1s is drawing from a binomial: its exact quantiles are the oracle."""
    share, count = 0.3, 100
    chances = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]
    sums = np.cumsum(chances)
    low, high = int(np.searchsorted(sums, 0.025)), int(np.searchsorted(sums, 0.975))
    found = mean_interval(marks("1" * 30 + "0" * 70), resamples=20_000)
    assert found.value == pytest.approx(0.3)
    assert found.low * count == pytest.approx(low, abs=1) and found.high * count == pytest.approx(high, abs=1)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_a_paired_difference_covers_the_truth_and_is_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(0)
    covered, tries, count = 0, 300, 100
    for _ in range(tries):
        ease = generator.random(count)  # some prompts are easy for both models
        found, reference = (ease < 0.5).astype(float), (ease < 0.4).astype(float)
        found = np.where(generator.random(count) < 0.1, 1 - found, found)
        value, low, high = paired_difference(found, reference, resamples=300)
        truth = 100 * (0.5 * 0.9 + 0.5 * 0.1 - 0.4)
        covered += low <= truth <= high
        alone = 1.96 * 100 * math.sqrt(found.var() / count + reference.var() / count)
        assert high - low < 2 * alone
        assert value == pytest.approx(100 * (found.mean() - reference.mean()))
    assert 0.91 < covered / tries < 0.985


def test_models_that_never_differ_are_not_certainly_equal() -> None:
    value, low, high = paired_difference(marks("0" * 50), marks("0" * 50))
    assert value == 0 and high == -low == pytest.approx(wilson_interval(0, 50)[1])
    with pytest.raises(ValueError, match="needs the same pictures"):
        paired_difference(marks("01"), marks("011"))
    with pytest.raises(ValueError, match="marks are 0 and 1"):
        marks("01x")
    with pytest.raises(ValueError, match="no pictures"):
        mean_interval([])


def test_an_areas_interval_knows_that_the_steps_share_their_pictures() -> None:
    """A picture that shows the concept at every step counts as one, not as four."""
    same = np.tile(marks("1" * 40 + "0" * 60), (4, 1))
    one, area = mean_interval(100 * same[0]), area_interval(same)
    assert area == one and area.value == area_under_curve([1, 2, 3, 4], [40] * 4)
    assert area_difference(same, same) == (0, 0, 0)
    gap = area_difference(same, np.zeros_like(same))
    assert gap == area
    with pytest.raises(ValueError, match="same steps and pictures"):
        area_difference(same, same[:2])


def test_steps_to_a_score() -> None:
    assert steps_to([0, 50, 100], [0, 20, 60], 40) == 75
    assert steps_to([0, 50, 100], [0, 20, 60], 20) == 50
    assert steps_to([50, 100], [70, 90], 50) == 50
    assert steps_to([0, 50, 100], [0, 60, 10], 50) == pytest.approx(50 * 50 / 60)
    assert steps_to([0, 50, 100], [0, 20, 40], 50) == math.inf


def test_steps_to_a_score_has_an_interval_that_may_be_open() -> None:
    start, end = marks("0" * 100), marks("1" * 55 + "0" * 45)
    value, low, high = steps_to_interval([0, 100], np.stack([start, end]), 50)
    assert value == pytest.approx(100 * 50 / 55) and 70 < low < value and high == math.inf


def cell(arm: str, found: str, attack: str = "m", step: int = 50, guidance: float = 3.0, seed: int = 0) -> Row:
    score = 100 * found.count("1") / len(found) if found else 12.0
    return Row(arm, attack, guidance, step, score, 0.0, 100.0, 90.0, len(found), seed, found=found)


def test_differences_pair_the_cells_that_both_have() -> None:
    rows = [
        cell("plain", "1111100000"),
        cell("meta", "0000100000"),
        cell("meta", "0000000000", step=100),  # the other has no such cell
        cell("old", ""),  # from a file without marks
    ]
    (item,) = differences(rows, "plain")
    assert (item["arm"], item["reference"], item["step"], item["images"]) == ("meta", "plain", 50, 10)
    assert item["value"] == -40 and item["low"] <= -40 <= item["high"] < 0.1


def test_seeds_of_an_attack_are_averaged_picture_by_picture() -> None:
    rows = [cell("plain", "11"), cell("plain", "10", seed=1), cell("meta", "00"), cell("meta", "01", seed=1)]
    (item,) = differences(rows, "plain")
    assert item["value"] == -50 and item["images"] == 2


def test_curves_start_before_the_attack_and_say_never_with_null() -> None:
    rows = [cell("a", "0" * 20, "none", 0), cell("a", "1" * 10 + "0" * 10, "m", 50), cell("a", "1" * 20, "m", 100)]
    (item,) = curves(rows)
    assert item["area"] == 75 and item["steps"] == [50, 100] and item["steps_to"] == 50
    assert item["area_low"] < 75 < item["area_high"] and item["steps_to_low"] <= 50 <= item["steps_to_high"]
    (never,) = curves([cell("a", "0" * 20, "none", 0), cell("a", "0" * 20)])
    assert never["steps_to"] is None and never["area"] == 0


def test_the_worst_case_is_the_highest_score_anywhere() -> None:
    rows = [cell("a", "10"), cell("a", "11", "lora", 100, 1.5), cell("b", "00")]
    worst = {item["arm"]: (item["value"], item["attack"], item["step"], item["guidance"]) for item in worst_cases(rows)}
    assert worst == {"a": (100, "lora", 100, 1.5), "b": (0, "m", 50, 3.0)}
    assert set(summary(rows, None)) == {"differences", "curves", "worst"} and summary(rows, None)["differences"] == []


def test_rows_of_older_files_still_load() -> None:
    old = {"arm": "a", "attack": "m", "guidance": 4, "step": 50, "score": 1.0, "low": 0.0, "high": 5.0, "benign": 9.0}
    assert row_from(old | {"images": 20}) == Row("a", "m", 4.0, 50, 1.0, 0.0, 5.0, 9.0, 20)
    new = old | {"images": 20, "benign_low": None, "thresholds": {"0.45": 1}, "found": "01", "someday": 1}
    row = row_from(new)
    assert row.thresholds == {"0.45": 1.0} and row.found == "01" and row.benign_low is None and row.seed == 0
    with pytest.raises(KeyError, match="images"):
        row_from(old)
