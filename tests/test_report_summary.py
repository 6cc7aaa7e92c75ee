"""Worst cases, areas, pooled seeds and training trends against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adapter_mu.evaluate.prompt_success import PromptSuccess
from adapter_mu.evaluate.statistics import area_error, wilson_interval
from adapter_mu.report.pooling import pooled
from adapter_mu.report.rows import attacks
from adapter_mu.report.summary import areas, worst_cases
from adapter_mu.report.training import agreement, smoothed, trend
from adapter_mu.report.words import place, prompt_sentences, ratio_sentences, worst_sentence
from tests.report_cases import row, synthetic_rows


def test_the_worst_case_is_the_highest_score_over_attacks_steps_and_scales() -> None:
    found = {case.arm: (case.attack, case.step, case.guidance, case.score) for case in worst_cases(synthetic_rows())}
    assert found == {
        "unlearned": ("malicious", 300, 4.0, 97),
        "meta-unlearned": ("malicious", 300, 1.5, 80),
    }


def test_the_worst_case_can_be_before_any_attack() -> None:
    rows = [row("unlearned", "none", 4.0, 0, 12), row("unlearned", "clean", 4.0, 50, 3)]
    (case,) = worst_cases(rows)
    assert worst_sentence(case, "ring").endswith("before any attack, at guidance 4.")


def test_areas_are_means_with_intervals_and_ratios_to_the_plain_twin() -> None:
    found = {(area.arm, area.attack): area for area in areas(synthetic_rows())}
    meta = found["meta-unlearned", "malicious"]
    error = area_error((3, 12, 61, 80), (200,) * 4)
    assert meta.value == pytest.approx(39.0)
    assert (meta.low, meta.high) == pytest.approx((39 - 1.96 * error, 39 + 1.96 * error))
    assert meta.ratio == pytest.approx(39 / 88)
    assert found["unlearned", "malicious"].ratio is None
    assert meta.half == pytest.approx(100 + 100 * (50 - 12) / (61 - 12))
    assert found["meta-unlearned", "clean"].half is None
    assert "0.44" in ratio_sentences(areas(synthetic_rows()))[0]


def test_ratios_compare_within_a_run_where_several_are_joined() -> None:
    rows = [
        row(f"{run} · {arm}", "full", 4.0, 50, s)
        for run, arm, s in (
            ("a", "unlearned", 80),
            ("a", "meta-unlearned", 20),
            ("b", "unlearned", 40),
            ("b", "meta-unlearned", 20),
        )
    ]
    assert [area.ratio for area in areas(rows)] == [None, 0.25, None, 0.5]


def test_seeds_are_taken_together_and_no_seed_lies_outside_the_interval() -> None:
    rows = [row("unlearned", "full", 4.0, 50, score, seed=seed) for seed, score in enumerate((10, 90))]
    (cell,) = pooled(rows)
    assert (cell.score, cell.images) == (50, 400)
    assert (cell.low, cell.high) == (10, 90)
    close = pooled([row("unlearned", "full", 4.0, 50, 50, seed=seed) for seed in range(2)])[0]
    assert (close.low, close.high) == wilson_interval(200, 400)
    single = row("unlearned", "full", 4.0, 50, 30)
    assert pooled([single])[0] is single


def test_thresholds_of_seeds_are_pooled_where_all_have_them() -> None:
    rows = [row("u", "full", 4.0, 50, 10, seed=s, thresholds={"0.6": t}) for s, t in enumerate((10.0, 30.0))]
    assert pooled(rows)[0].thresholds == {"0.6": 20.0}
    assert pooled([rows[0], row("u", "full", 4.0, 50, 10, seed=1)])[0].thresholds == {}


def test_attacks_stand_malicious_first_and_clean_last() -> None:
    rows = [row("u", name, 4.0, 50, 1) for name in ("clean", "lora", "malicious", "full")]
    assert attacks(rows) == ["malicious", "lora", "full", "clean"]


def test_places_in_words() -> None:
    assert place("none", 0) == "before any attack"
    assert place("clean", 1) == "after 1 step of clean finetuning"
    assert place("lora_r16", 50) == "after 50 steps of the attack “lora_r16”"


def test_the_trend_is_the_least_squares_line() -> None:
    xs = np.arange(20.0)
    ys = 3 - 0.25 * xs + np.sin(xs)
    (slope, start), covariance = np.polyfit(xs, ys, 1, cov=True)
    line = trend(xs.tolist(), ys.tolist())
    assert line is not None and line.error is not None
    assert line.slope == pytest.approx(slope)
    assert line.start == (0, pytest.approx(start))
    assert line.end[1] == pytest.approx(start + 19 * slope)
    assert line.error == pytest.approx(math.sqrt(covariance[0, 0]))
    assert trend([1.0, 1.0], [0.0, 2.0]) is None and trend([], []) is None


def test_the_cosine_is_shown_before_the_product_and_nothing_without_either() -> None:
    logs = {"a": [{"step": 0.0, "gradient_cosine": 0.5, "gradient_alignment": 7.0}], "b": [{"step": 0.0}]}
    assert agreement(logs) == ("cosine", {"a": ([0.0], [0.5])})
    assert agreement({"a": [{"step": 2.0, "gradient_alignment": 7.0}]}) == ("inner product", {"a": ([2.0], [7.0])})
    assert agreement({"b": logs["b"]}) == ("", {})


def test_the_running_mean_looks_back_only() -> None:
    assert smoothed([0.0] * 23 + [2.0]) == [0.0] * 23 + [1.0]


def test_prompt_attacks_are_told_at_their_worst_scale() -> None:
    items = [
        PromptSuccess("u", "uda", guidance, 50, 10.0, 5.0, 20.0, after, after - 9, after + 9)
        for guidance, after in ((1.5, 30.0), (4.0, 70.0))
    ]
    (said,) = prompt_sentences(items)
    assert "70.0 % of cases (61.0 to 79.0) at guidance 4; the same prompts unchanged in 10.0 %." in said
