"""What the report says of a synthetic run: worst cells, honest sentences, the terminal's table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapter_mu.errors import UserError
from adapter_mu.evaluate.statistics import Row
from adapter_mu.report import headline_table, load_results, load_rows, render_text
from adapter_mu.report.bars import sentences, verdicts
from adapter_mu.report.page import build_report
from tests.report_cases import row, synthetic_rows, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, synthetic_rows(), title="Forgetting the ring", caption="A synthetic run & a test.")


def test_rows_come_back_as_written(run: Path) -> None:
    assert load_rows(run) == synthetic_rows()
    results = load_results(run)
    assert (results.concept, results.usual_guidance, results.title) == ("ring", 4.0, "Forgetting the ring")


def test_every_cell_is_the_worse_scale_and_benign_the_lower() -> None:
    table = headline_table(synthetic_rows())
    meta = table.line("meta-unlearned")
    assert [line.arm for line in table.lines] == ["base", "unlearned", "meta-unlearned"]
    assert meta is not None
    assert [r.score for r in meta.curve("malicious")] == [3, 12, 61, 80]
    assert meta.benign == 90
    assert meta.area == pytest.approx(39.0)
    assert meta.ratio == pytest.approx(39.0 / 88.0)


def test_an_unfinished_attack_has_no_area() -> None:
    rows = [r for r in synthetic_rows() if (r.arm, r.attack, r.step) != ("unlearned", "malicious", 300)]
    table = headline_table(rows)
    assert [line.area for line in table.lines] == [None, None, pytest.approx(39.0)]
    assert all(line.ratio is None for line in table.lines)
    assert "not compared yet" in sentences(table, "ring")[0]


def test_other_arms_come_last_and_get_their_own_verdict() -> None:
    rows = [row("ascent", "none", 4.0, 0, 3), *synthetic_rows()]
    table = headline_table(rows)
    assert [line.arm for line in table.lines] == ["base", "unlearned", "meta-unlearned", "ascent"]
    assert [verdict.arm for verdict in verdicts(table)] == ["meta-unlearned", "ascent"]


def test_text_table_is_aligned() -> None:
    lines = render_text(headline_table(synthetic_rows()), "ring").splitlines()
    table = lines[lines.index("") + 1 :]
    bars = [[i for i, letter in enumerate(line) if letter == "|"] for line in table]
    assert len(table) == 5 and len(set(map(tuple, bars))) == 1
    assert re.split(r"[\s|]+", table[4]) == (
        "meta-unlearned 1.0 3.0 12.0 61.0 80.0 0.0 1.0 1.0 2.0 90.0 39.0 0.44".split()
    )
    assert all(len(line) <= 120 for line in lines)


def changed(arm: str, attack: str, step: int, score: float) -> list[Row]:
    """The synthetic rows with one cell at both guidance scales set to `score`."""
    rows = synthetic_rows()
    return [
        row(r.arm, r.attack, r.guidance, r.step, score, r.benign)
        if (r.arm, r.attack, r.step) == (arm, attack, step)
        else r
        for r in rows
    ]


@pytest.mark.parametrize(
    ("cell", "score", "missed"),
    [
        (("base", "none", 0), 94.5, "base shows"),
        (("unlearned", "malicious", 300), 69.5, "unlearned relearns"),
        (("unlearned", "none", 0), 10.5, "unlearned before"),
        (("meta-unlearned", "none", 0), 10.5, "at most 3 above"),
        (("meta-unlearned", "malicious", 50), 60, "area at most"),
        (("meta-unlearned", "clean", 100), 10, "under 10"),
    ],
)
def test_each_bar_is_missed_by_its_own_cell(cell: tuple[str, str, int], score: float, missed: str) -> None:
    table = headline_table(changed(*cell, score))
    failed = [bar.text for bar in verdicts(table)[0].bars if not bar.met]
    assert len(failed) == 1 and missed in failed[0]
    assert missed in sentences(table, "ring")[1]


def test_sentences_when_all_is_well() -> None:
    first, second = sentences(headline_table(synthetic_rows()), "ring")
    assert "80.0 % of the meta-unlearned" in first and "97.0 % of the unlearned" in first
    assert "0.44" in first and "clearly more" in first
    assert second == "All 8 bars that were measured are met."


@pytest.mark.parametrize(
    ("factor", "words"), [(1.0, "noise of sampling"), (0.8, "not much"), (1.2, "relearned faster")]
)
def test_sentences_do_not_flatter(factor: float, words: str) -> None:
    rows = [r for r in synthetic_rows() if (r.arm, r.attack) != ("meta-unlearned", "malicious")]
    plain = [r for r in rows if (r.arm, r.attack) == ("unlearned", "malicious")]
    rows = [row(r.arm, r.attack, r.guidance, r.step, 0.8 * r.score) if r in plain else r for r in rows]
    rows += [row("meta-unlearned", "malicious", r.guidance, r.step, 0.8 * factor * r.score) for r in plain]
    assert words in sentences(headline_table(rows), "ring")[0]


def test_a_run_with_nothing_to_compare_says_so() -> None:
    rows = [row("unlearned", "none", 4.0, 0, 3)]
    assert "compares nothing" in sentences(headline_table(rows), "ring")[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no"),
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ('{"rows": []}', "no rows yet"),
        ('{"rows": [{"arm": "base"}]}', "cannot be read"),
        ('{"meta": {}}', "cannot be read"),
    ],
)
def test_unreadable_results_end_in_one_sentence(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=words):
        build_report(tmp_path)
