"""A score counts the pictures that show their own concept, always on the same noise, and is never taken twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import adapter_mu.stages.scoring as scoring
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.detectors import ShapesWorld, new_detector
from adapter_mu.evaluate.pictures import SHOWN, save_picture, save_strip
from adapter_mu.evaluate.scores import Measured, measure, score_row
from adapter_mu.evaluate.statistics import Row, wilson_interval
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.recipe import Evaluate, Prompts, Recipe, load_recipe
from adapter_mu.shapes.draw import draw
from adapter_mu.shapes.vocabulary import SHAPES, random_scenes
from adapter_mu.stages import Run, Scores, attack_arm

EVALUATE = Evaluate(
    detector="shapes",
    concept=Prompts(prompts=["a {c} ring"], fill={"c": ["red", "blue", "green"]}, shows="ring", images=6, seed=1),
    benign=Prompts(prompts=["a {s}"], fill={"s": ["star", "square"]}, shows="{s}", images=4, seed=2),
    guidance=[1.5, 4.0],
    steps=2,
    batch_size=4,
)


class Told:
    """A detector that finds what it is told to, and remembers what it was asked."""

    def __init__(self, *answers: list[bool]) -> None:
        self.answers: Iterator[list[bool]] = iter(answers)
        self.thresholds: dict[str, float] = {}
        self.asked: list[list[str]] = []

    def check(self, concepts: set[str]) -> None:
        pass

    def scores(self, pictures: Tensor, concepts: list[str]) -> Tensor:
        raise AssertionError("it has no thresholds")

    def facts(self) -> dict[str, Any]:
        return {}

    def found(self, pictures: Tensor, concepts: list[str]) -> Tensor:
        assert len(pictures) == len(concepts)
        self.asked.append(concepts)
        return torch.tensor(next(self.answers))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("shapes-sd")


def test_a_row_counts_what_the_detector_found(model: LoadedModel) -> None:
    detector = Told([True, False, True, False, False, False], [True, True, True, False])
    row, concept, benign = score_row(model, EVALUATE, detector, arm="a", attack="m", step=50, guidance=1.5, seed=3)
    (low, high), (benign_low, benign_high) = wilson_interval(2, 6), wilson_interval(3, 4)
    shares = (100 * 2 / 6, low, high, 75.0, 6, 3, benign_low, benign_high, {}, "101000", "1110")
    assert row == Row("a", "m", 1.5, 50, *shares)
    assert (concept.hits, benign.hits) == (2, 3)
    assert concept.pictures.shape == (6, 3, 32, 32) and 0 <= concept.pictures.min() <= concept.pictures.max() <= 1


def test_each_picture_is_asked_for_its_own_concept(model: LoadedModel) -> None:
    detector = Told([False] * 6, [False] * 4)
    score_row(model, EVALUATE, detector, arm="a", attack="m", step=0, guidance=1.5)
    assert detector.asked[0] == ["ring"] * 6
    assert sorted(detector.asked[1]) == ["square", "square", "star", "star"]


def test_the_noise_is_the_same_for_every_model_and_moment(model: LoadedModel) -> None:
    def pictures(spec: Prompts, guidance: float = 1.5) -> Tensor:
        return measure(model, spec, EVALUATE, Told([False] * spec.images), guidance).pictures

    concept = EVALUATE.concept
    torch.manual_seed(1)
    first = pictures(concept)
    torch.manual_seed(2)
    assert torch.equal(first, pictures(concept))
    assert not torch.allclose(first, pictures(concept, guidance=4.0), atol=1e-3)
    assert not torch.allclose(first, pictures(concept.model_copy(update={"seed": 9})), atol=1e-3)


def test_measured_pictures_and_shares_agree() -> None:
    measured = Measured(torch.zeros(8, 3, 4, 4), torch.tensor([True] * 2 + [False] * 6))
    assert (measured.hits, measured.share) == (2, 25.0)


def test_the_shapes_detector_finds_drawn_shapes_only() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = random_scenes(100, generator)
    names = [SHAPES[scene.shape] for scene in scenes]
    detector, pictures = new_detector("shapes"), draw(scenes, generator)
    assert detector.found(pictures, names).float().mean() > 0.98
    others = [SHAPES[(SHAPES.index(name) + 1) % len(SHAPES)] for name in names]
    assert detector.found(pictures, others).float().mean() < 0.02


def test_what_no_detector_can_answer_is_refused() -> None:
    with pytest.raises(RecipeError, match="no detector 'nudity'"):
        new_detector("nudity")
    with pytest.raises(RecipeError, match="does not know 'banana'"):
        ShapesWorld().check({"ring", "banana"})
    with pytest.raises(RecipeError, match="reads 32x32 pictures"):
        ShapesWorld().found(torch.zeros(1, 3, 64, 64), ["ring"])


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255


def test_a_picture_is_saved_as_it_is(tmp_path: Path) -> None:
    picture = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    save_picture(picture, tmp_path / "new" / "one.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.png"]
    assert (pixels(tmp_path / "new" / "one.png") - picture).abs().max() <= 0.5 / 255 + 1e-6


def test_a_strip_shows_rows_of_different_length(tmp_path: Path) -> None:
    """The first pictures of each row, framed in white, small ones enlarged."""
    rows = [torch.zeros(SHOWN + 3, 3, 32, 32), torch.full((2, 3, 32, 32), 0.5)]
    save_strip(rows, tmp_path / "strip.png")
    strip = pixels(tmp_path / "strip.png")
    assert strip.shape == (3, 2 * 34 * 3, SHOWN * 34 * 3)
    assert strip[:, 50, -50].max() == 0 and strip[:, -50, 50].max() < 0.6 and strip[:, -50, -50].min() == 1
    assert strip[:, 0, 0].min() == 1


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("shapes/demo").model_copy(update={"evaluate": EVALUATE})


@pytest.fixture
def run(model: LoadedModel, recipe: Recipe, tmp_path: Path) -> Run:
    return Run(recipe, tmp_path, model, "hash", Told())


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Stands in for the sampling; remembers each cell that was measured."""
    calls: list[tuple[int, float]] = []

    def score(*_: Any, arm: str, attack: str, step: int, guidance: float, seed: int) -> tuple[Row, Measured, Measured]:
        calls.append((step, guidance))
        measured = Measured(torch.zeros(2, 3, 32, 32), torch.tensor([True, False]))
        return Row(arm, attack, guidance, step, 50.0, 10.0, 90.0, 50.0, 2, seed), measured, measured

    monkeypatch.setattr(scoring, "score_row", score)
    return calls


def test_only_missing_cells_are_measured(run: Run, model: LoadedModel, scored: list[tuple[int, float]]) -> None:
    Scores(run, "arm", EVALUATE).measure(model, "none", 0)
    assert scored == [(0, 1.5), (0, 4.0)]
    file = run.arm_folder("arm") / "scores.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])  # killed between the two scales
    again = Scores(run, "arm", EVALUATE)
    assert again.has("none", 0, 1.5) and not again.has("none", 0)
    again.measure(model, "none", 0)
    assert scored[2:] == [(0, 4.0)]
    again.measure(model, "none", 0)
    assert len(scored) == 3 and Scores(run, "arm", EVALUATE).rows == again.rows
    assert {path.name for path in (run.folder / "pictures").iterdir()} == {"arm_none_0_1.5.png", "arm_none_0_4.png"}


def test_scores_of_another_model_are_not_taken_for_this_ones(
    run: Run, model: LoadedModel, scored: list[tuple[int, float]]
) -> None:
    assert run.recipe.evaluate
    rows = attack_arm(run, "arm", model, run.recipe.evaluate, {})
    assert attack_arm(run, "arm", model, run.recipe.evaluate, {}) == rows and len(scored) == 2
    with pytest.raises(RecipeError, match="scores of another model named 'arm'"):
        attack_arm(run, "arm", load_model("shapes-sdxl"), run.recipe.evaluate, {})


class Sure(Told):
    """A detector with thresholds, whose scores are the pictures' places."""

    def __init__(self) -> None:
        super().__init__()
        self.thresholds = {"0.2": 0.2, "0.5": 0.5}

    def scores(self, pictures: Tensor, concepts: list[str]) -> Tensor:
        return torch.arange(len(pictures)) / len(pictures)


def test_a_row_has_the_score_at_each_threshold_and_counts_by_the_first(model: LoadedModel) -> None:
    row, concept, _ = score_row(model, EVALUATE, Sure(), arm="a", attack="m", step=0, guidance=1.5)
    # Six pictures: 0, 1/6, 2/6, 3/6, 4/6, 5/6.
    assert row.thresholds == pytest.approx({"0.2": 100 * 4 / 6, "0.5": 100 * 2 / 6})
    assert row.score == row.thresholds["0.2"] and row.found == "001111" and concept.hits == 4


def test_another_detector_may_judge_the_benign_pictures(model: LoadedModel) -> None:
    evaluate = EVALUATE.model_copy(update={"benign_detector": "shapes"})
    row, _, benign = score_row(model, evaluate, Told([True] * 6), arm="a", attack="m", step=0, guidance=4.0)
    assert row.score == 100 and benign.thresholds == {} and len(row.benign_found) == 4


def test_a_list_brings_its_own_seeds_and_where_asked_its_own_guidance(model: LoadedModel, tmp_path: Path) -> None:
    """At the usual scale rows are drawn with their own guidance, at the others and without `own_guidance` at those."""
    (tmp_path / "list.csv").write_text(
        "prompt,evaluation_seed,evaluation_guidance\na red ring,11,1.5\na blue ring,12,4.0\n"
    )
    spec = Prompts(csv=tmp_path / "list.csv", shows="ring")
    own = EVALUATE.model_copy(update={"concept": spec, "own_guidance": True, "usual_guidance": 4.0})
    plain = own.model_copy(update={"own_guidance": False})

    def pictures(evaluate: Evaluate, guidance: float) -> Tensor:
        return measure(model, spec, evaluate, Told([True] * 2), guidance).pictures

    low, high = pictures(plain, 1.5), pictures(plain, 4.0)
    mixed = pictures(own, 4.0)
    assert torch.allclose(mixed[0], low[0], atol=1e-4) and torch.allclose(mixed[1], high[1], atol=1e-4)
    assert torch.allclose(pictures(own, 1.5), low, atol=1e-4)
    assert not torch.allclose(low[0], high[0], atol=1e-3)
    other = Prompts(csv=tmp_path / "list.csv", shows="ring", seed=9)  # the list's seeds stand whatever ours is
    again = measure(model, other, plain, Told([True] * 2), 4.0).pictures
    assert torch.equal(again, high)


def test_many_pictures_are_judged_some_at_a_time(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EVALUATE.concept.model_copy(update={"images": SHOWN + 3})
    whole = measure(model, spec, EVALUATE, new_detector("shapes"), 4.0)
    monkeypatch.setattr("adapter_mu.evaluate.scores.AT_ONCE", 4)
    parts = measure(model, spec, EVALUATE, new_detector("shapes"), 4.0)
    assert len(parts.found) == SHOWN + 3 and len(parts.pictures) == SHOWN
    assert torch.equal(parts.found, whole.found) and torch.allclose(parts.pictures, whole.pictures, atol=1e-5)
