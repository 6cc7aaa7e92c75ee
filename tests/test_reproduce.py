"""The paper's tables: its numbers, our layout, what is counted, and the figures, on made-up runs."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.pictures import save_strip
from adapter_mu.evaluate.statistics import Row
from adapter_mu.recipe import load_recipe
from adapter_mu.reproduce import paper
from adapter_mu.reproduce.figure6 import cosines, plot, regression
from adapter_mu.reproduce.figure7 import _related_tile
from adapter_mu.reproduce.layout import Cell, Sheet
from adapter_mu.reproduce.runs import World, variant, worst_row
from adapter_mu.reproduce.table1 import compare, table1
from adapter_mu.reproduce.table2 import table2

PLAIN, META = paper.UNLEARNED, paper.META


def write_run(folder: Path, factor: float = 0.5) -> Path:
    """A run whose meta-unlearned scores are `factor` times the unlearned ones; guidance 4 is 10 points milder."""
    rows = []
    for arm, share in ((PLAIN, 1.0), (META, factor)):
        for i, (attack, step) in enumerate(paper.COLUMNS):
            for guidance, milder in ((1.5, 0.0), (4.0, 10.0)):
                score = share * (20 + i) - milder * share
                rows.append(Row(arm, attack, guidance, step, score, score - 3, score + 3, 95.0 + milder / 10, 100))
    rows.append(Row("base", "none", 1.5, 0, 99.0, 96.0, 100.0, 98.0, 100))
    quality = [
        {"arm": arm, "attack": "none", "step": 0, "metric": metric, "value": value, "low": None, "high": None,
         "images": 100, "convention": f"how {metric} was made"}
        for arm in ("base", PLAIN, META)
        for metric, value in (("fid", 12.5), ("clip_score", 30.25))
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"rows": [asdict(row) for row in rows], "quality": quality}))
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose runs are made up."""
    monkeypatch.setattr(World, "recipe", lambda self, name: name)
    monkeypatch.setattr(World, "run", lambda self, recipe, name: write_run(self.folder / name))
    return World("shapes", [], tmp_path)


def test_the_papers_table_has_every_cell_and_its_own_claim() -> None:
    assert len(paper.COLUMNS) == 13 and {len(cells) for cells in paper.TABLE1.values()} == {13}
    assert len(paper.TABLE1) == 12
    pairs = [zip(paper.TABLE1[row, PLAIN][1:], paper.TABLE1[row, META][1:], strict=True) for row in paper.ROWS]
    assert sum(meta < plain for pair in pairs for plain, meta in pair) == 72
    # Every score is a number of the 142 prompts.
    assert all(abs(c * 1.42 - round(c * 1.42)) < 0.008 for cells in paper.TABLE1.values() for c in cells)


def test_a_cell_is_the_worst_guidance_scale(tmp_path: Path) -> None:
    row = worst_row(write_run(tmp_path / "run"), PLAIN, "hrm-m", 50)
    assert row is not None and (row.guidance, row.score) == (1.5, 21.0)
    assert worst_row(tmp_path / "run", PLAIN, "hrm-m", 51) is None


def test_compare_counts_cells_and_takes_the_ratio_of_malicious_areas(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "half", 0.5))
    assert (found.lower, found.equal, found.cells) == (12, 0, 12)
    assert found.ratio == pytest.approx(0.5)
    assert found.benign == (95.0, 95.0)
    same = compare(write_run(tmp_path / "same", 1.0))
    assert (same.lower, same.equal) == (0, 12)


def test_table1_is_full_and_stands_beside_the_papers(world: World) -> None:
    sheet = table1(world)
    assert len(sheet.rows) == 13 and all(len(cells) == 13 for cells in sheet.rows.values())
    cells = sheet.rows["UCE meta-unlearned"]
    assert all(cell.low is not None and cell.high is not None for cell in cells)
    assert [cell.paper for cell in cells] == paper.TABLE1["UCE", META]
    assert "below unlearned in 72 of 72" in sheet.notes[0] and "0.50 (paper: 0.60)" in sheet.notes[1]
    assert "UCE meta-unlearned" in sheet.text() and "[13-19]" in sheet.text()


def test_table2_has_both_metrics_for_every_row(world: World) -> None:
    sheet = table2(world)
    assert sheet.rows[f"{META} clip_score"][-1] == Cell(30.25, None, None, 30.23, digits=2)
    assert sheet.notes == ["fid: how fid was made.", "clip_score: how clip_score was made."]


def test_a_sheet_is_saved_as_markdown_and_csv(tmp_path: Path) -> None:
    sheet = Sheet("Title", ["a", "b"], {"row": [Cell(1.25, 0, 3, 2.0), Cell(paper=4.0)]}, ["a note"])
    sheet.save(tmp_path, "table")
    assert "| row | 1.2<br>[0-3]<br>*2.00* | -<br>*4.00* |" in (tmp_path / "table.md").read_text()
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert lines[0] == {"row": "row", "column": "a", "value": "1.25", "low": "0", "high": "3", "paper": "2.0"}
    assert lines[1]["value"] == ""


def test_an_unknown_world_or_arm_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="World 'moon' has no recipe for uce"):
        World("moon", [], tmp_path).recipe("uce")
    with pytest.raises(RecipeError, match="no arm 'meta-unlearned'"):
        variant(load_recipe("shapes/demo", ["arms=null"]), {})


def test_a_variant_is_the_arm_with_changes() -> None:
    recipe = load_recipe("shapes/demo")
    found = variant(recipe, {"meta": {"attacker": {"steps": 3}}})
    assert found.meta is not None and found.meta.attacker.steps == 3 and not found.arms
    assert found.train.retain_related == recipe.arm(META).train.retain_related


def test_the_regression_line_is_least_squares() -> None:
    values = np.random.default_rng(0).normal(size=50) - 0.02 * np.arange(50)
    slope, intercept, error = regression(values.tolist())
    steps = np.arange(50)
    residual = values - slope * steps - intercept
    assert abs(residual.sum()) < 1e-9 and abs(residual @ steps) < 1e-8
    spread = ((steps - steps.mean()) ** 2).sum()
    assert error == pytest.approx(np.sqrt(residual @ residual / 48 / spread))


def test_figure6_reads_the_training_log(tmp_path: Path) -> None:
    log = tmp_path / "training.jsonl"
    log.write_text("".join(json.dumps({"step": i, "forget_related_cosine": -i / 10}) + "\n" for i in range(20)))
    assert cosines(log)[:3] == [0, -0.1, -0.2]
    assert plot(cosines(log), tmp_path / "figure6.png")[0] == pytest.approx(-0.1)
    assert Image.open(tmp_path / "figure6.png").size[0] > 600


def test_figure7_shows_the_benign_line_of_a_strip(tmp_path: Path) -> None:
    concept, benign = torch.zeros(10, 3, 8, 8), torch.arange(10).div(15).view(10, 1, 1, 1).expand(10, 3, 8, 8)
    save_strip([concept, benign], tmp_path / "strip.png")
    tile = _related_tile(tmp_path / "strip.png", 4)
    middle = tile[tile.shape[0] // 2, tile.shape[1] // 2]
    assert (middle == 68).all()  # the fifth benign picture: 4 / 15 of 255
