"""What a report leaves beside its page, and the page that compares several runs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from adapter_mu.cli.main import main
from adapter_mu.errors import UserError
from adapter_mu.report.bundle import differing, load_run
from adapter_mu.report.page import build_comparison, build_report, labels
from tests.report_cases import row, synthetic_rows, write_results, write_run, write_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_suite(tmp_path_factory.mktemp("runs") / "first", attacks=("full", "clean"), guidances=(1.5, 7.5))
    build_report(folder)
    return folder


def test_everything_is_written_and_nothing_is_left_half(suite: Path) -> None:
    made = {path.relative_to(suite).as_posix() for path in suite.rglob("*") if path.is_file()}
    assert {"report.html", "report.json", "results.csv"} <= made
    plots = {"relearning", "relearning_full", "relearning_clean", "training", "gradient_conflict"}
    assert {name for name in made if name.startswith("plots/")} == {f"plots/{name}.png" for name in plots}
    assert not [name for name in made if name.rpartition("/")[2].startswith(".")]
    for name in plots:
        with Image.open(suite / "plots" / f"{name}.png") as image:
            assert image.width > 600


def test_the_summary_for_machines(suite: Path) -> None:
    summary = json.loads((suite / "report.json").read_text())
    rows = load_run(suite).results.rows
    worst = {case["arm"]: case for case in summary["worst_cases"]}
    assert worst.keys() == {"unlearned", "meta-unlearned"}
    assert worst["meta-unlearned"]["attack"] == "full" and worst["meta-unlearned"]["step"] == 300
    assert worst["meta-unlearned"]["low"] < worst["meta-unlearned"]["score"] < worst["meta-unlearned"]["high"]
    assert [(area["arm"], area["attack"]) for area in summary["areas"]] == [
        (arm, attack) for attack in ("full", "clean") for arm in ("unlearned", "meta-unlearned")
    ]
    assert all(area["low"] < area["value"] < area["high"] for area in summary["areas"])
    assert len(summary["before"]) == len([r for r in rows if r.attack == "none"])
    assert summary["detector"]["version"] == "3.4.2" and summary["headline"][1].startswith("At its worst, meta-")
    assert summary["command"].endswith("--out 'runs/the suite' 'evaluate.guidance=[1.5, 3, 7.5]'")


def test_the_csv_has_every_row_and_every_field(suite: Path) -> None:
    rows = load_run(suite).results.rows
    with (suite / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, own in zip(lines, rows, strict=True):
        assert (line["arm"], line["attack"], int(line["seed"]), int(line["step"])) == (
            own.arm,
            own.attack,
            own.seed,
            own.step,
        )
        assert float(line["score"]) == own.score and float(line["score at 0.6"]) == own.thresholds["0.6"]
        assert line["found"] == own.found


def test_the_same_run_gives_the_same_bytes(suite: Path) -> None:
    made = [suite / name for name in ("report.html", "report.json", "results.csv", "plots/relearning.png")]
    before = [path.read_bytes() for path in made]
    build_report(suite)
    assert [path.read_bytes() for path in made] == before


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "second", attacks=("full", "clean"), guidances=(1.5, 7.5), detector="shapes")


def test_runs_are_compared_side_by_side(suite: Path, second: Path, tmp_path: Path) -> None:
    page = build_comparison([suite, second], tmp_path / "both.html")
    text = page.read_text()
    assert page == tmp_path / "both.html" and "2 runs compared" in text
    heads = re.findall(r'<tr class="method"><th[^>]*>(.*?)</th>', text)
    assert heads[:2] == ["first", "second"]
    for arm in ("first · meta-unlearned", "second · unlearned"):
        assert arm in text
    assert "first · base" not in text, "one base that scored the same in both"
    assert "The runs differ in the detector, so" in text
    assert 'id="unveil"' in text, "hidden as soon as one run is sensitive"


def test_the_comparisons_page_lies_in_the_first_run(suite: Path, second: Path) -> None:
    assert build_comparison([second, suite]) == second / "comparison.html"


def test_bases_that_differ_are_both_shown(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", synthetic_rows(), extras=False)
    other = write_run(tmp_path / "two", [row("base", "none", 4.0, 0, 70)], extras=False)
    text = build_comparison([one, other]).read_text()
    assert "one · base" in text and "two · base" in text


def test_settings_that_differ_are_listed(suite: Path, second: Path) -> None:
    recipe = (second / "recipe.yaml").read_text()
    (second / "recipe.yaml").write_text(recipe.replace("eta: 3.0", "eta: 1.0"))
    assert differing([load_run(suite).facts[0], load_run(second).facts[0]]) == {"method.eta": ["3.0", "1.0"]}


def test_labels_tell_folders_apart(tmp_path: Path) -> None:
    assert labels([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_run_named_twice_is_refused(suite: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        build_comparison([suite, suite / "."])


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["report", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_command_says_what_is_wrong(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "There is no" in said(capsys, suite, tmp_path / "empty")
    assert "named twice" in said(capsys, suite, suite)
    assert "--out is for a comparison" in said(capsys, suite, "--out", tmp_path / "x.html")
    broken = write_results(tmp_path / "broken", synthetic_rows(), {}, quality=[{"arm": "base"}])
    assert "cannot be read as results ('metric')" in said(capsys, broken)
    (broken / "environment.json").write_text("{")
    write_results(broken, synthetic_rows(), {})
    assert "environment.json is not valid JSON" in said(capsys, broken)
    (broken / "environment.json").unlink()
    (broken / "recipe.yaml").write_text("a: [")
    assert "recipe.yaml is not valid YAML" in said(capsys, broken)


def test_the_command_compares(suite: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(suite), str(second), "--out", str(tmp_path / "c.html")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"comparison: {tmp_path / 'c.html'}" and str(suite) in out and str(second) in out
    assert (tmp_path / "c.html").is_file()
