"""`adapter-mu evaluate`: pictures that are there, models with a wanted precision, and sentences for what is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from adapter_mu.cli.main import main
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.detectors.nudenet import NudeNet, NudeNetOptions
from adapter_mu.evaluate.folder import as_text, judge_folder, save_judged
from adapter_mu.evaluate.statistics import wilson_interval
from adapter_mu.shapes.draw import draw
from adapter_mu.shapes.vocabulary import SHAPES, random_scenes
from adapter_mu.stages import holds_pictures, pictures_to_judge, scoring_overrides


def save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rings, one of them in a folder of its own, and two stars."""
    folder, generator = tmp_path_factory.mktemp("drawings"), torch.Generator().manual_seed(0)
    rings = draw(random_scenes(3, generator, ("ring",)), generator)
    stars = draw(random_scenes(2, generator, ("star",)), generator)
    for number, picture in enumerate(torch.cat([rings, stars])):
        save(picture, folder / ("more/p0.png" if number == 0 else f"p{number}.png"))
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_is_judged_file_by_file(drawings: Path, tmp_path: Path) -> None:
    detector = new_detector("shapes")
    judged = judge_folder(drawings, detector, "ring")
    assert dict(zip(judged.files, judged.found, strict=True)) == {
        "more/p0.png": True,
        "p1.png": True,
        "p2.png": True,
        "p3.png": False,
        "p4.png": False,
    }
    low, high = wilson_interval(3, 5)
    assert judged.shares(detector) == [{"threshold": "found", "hits": 3, "value": 60.0, "low": low, "high": high}]
    save_judged(judged, detector, {"command": "c"}, tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["found"] for row in rows] == ["1", "1", "1", "0", "0"] and float(rows[0]["score"]) > 0.5
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["images"] == 5 and saved["meta"] == {"detector": detector.facts(), "command": "c"}
    assert "found: 60.0 % (3; 95 % interval" in as_text(judged, detector)


def test_nudenet_is_asked_once_and_reports_thresholds_and_classes(
    drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [[("FEET_EXPOSED", 0.5)], [("FEET_EXPOSED", 0.7), ("FACE_MALE", 0.9)], [], [("ANUS_EXPOSED", 0.8)], []]
    calls: list[int] = []

    def detections(self: NudeNet, pictures: Any) -> list[list[dict[str, Any]]]:
        calls.append(len(pictures))
        return [[{"class": label, "score": score} for label, score in one] for one in seen]

    monkeypatch.setattr(NudeNet, "detections", detections)
    detector = NudeNet(NudeNetOptions())
    judged = judge_folder(drawings, detector, "nudity")
    assert calls == [5]
    assert [one["hits"] for one in judged.shares(detector)] == [3, 2, 1]
    assert judged.class_counts(0.45) == {"FEET_EXPOSED": 2, "ANUS_EXPOSED": 1, "FACE_MALE": 1}
    assert "classes: FEET_EXPOSED 2, ANUS_EXPOSED 1, FACE_MALE 1" in as_text(judged, detector)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no pictures"):
        judge_folder(tmp_path, new_detector("shapes"), "ring")


def test_which_folders_are_taken_for_pictures(drawings: Path, tmp_path: Path) -> None:
    assert holds_pictures(drawings)
    assert not holds_pictures(tmp_path) and not holds_pictures(drawings / "p1.png")
    save(torch.zeros(3, 4, 4), tmp_path / "pictures" / "a.png")
    (tmp_path / "model_index.json").write_text("{}")  # a diffusers folder that also has example pictures
    assert not holds_pictures(tmp_path) and holds_pictures(tmp_path / "pictures")


def test_the_verb_judges_a_folder(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--detector", "shapes", "--concept", "ring", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(drawings), *options]) == 0
    assert "5 pictures, looking for ring with shapes" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert saved["meta"]["environment"]["torch"] == torch.__version__
    assert main(["evaluate", str(drawings), "--recipe", "shapes/demo"]) == 0  # detector and concept of the recipe
    assert "looking for ring with shapes" in capsys.readouterr().out


def test_what_the_verb_cannot_do_is_said(drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(drawings)]) == 2
    assert "Say with --detector" in capsys.readouterr().err
    assert main(["evaluate", str(drawings), "--detector", "shapes"]) == 2
    assert "Say with --concept" in capsys.readouterr().err
    assert main(["evaluate", str(drawings), "--detector", "shapes", "--concept", "dog"]) == 2
    assert "does not know 'dog'" in capsys.readouterr().err
    assert main(["evaluate", str(drawings), "--detector", "{classes: strict}", "--concept", "nudity"]) == 2
    assert "must be a name, or a mapping" in capsys.readouterr().err


def test_options_for_a_model_become_overrides() -> None:
    assert scoring_overrides(None, None, None) == []
    assert scoring_overrides("q16", None, 5) == [
        "evaluate.detector=q16",
        "evaluate.concept.images=381",
        "evaluate.benign.images=381",
    ]
    with pytest.raises(RecipeError, match="--precision 60 must lie between 0 and 50"):
        scoring_overrides(None, None, 60)
    with pytest.raises(RecipeError, match="--concept is for a folder of pictures"):
        scoring_overrides(None, "ring", None)


def test_a_detector_with_options_can_be_typed() -> None:
    choice, concept = pictures_to_judge("{name: nudenet, classes: strict}", "nudity", None, [])
    assert choice == {"name": "nudenet", "classes": "strict"} and concept == "nudity"
    assert SHAPES[0] == pictures_to_judge(None, None, "shapes/demo", [])[1]


def test_a_model_is_scored_with_the_images_that_a_precision_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty points need 21 pictures; the guidance scale in between, the detector's facts and the command are kept."""
    out = tmp_path / "run"
    options = ["--precision", "20", "--out", str(out), "evaluate.steps=1", "evaluate.guidance=[4.0]"]
    assert main(["evaluate", "shapes-sd", *options]) == 0
    results = json.loads((out / "results.json").read_text())
    (row,) = results["rows"]
    assert row["images"] == 21 == len(row["found"]) == len(row["benign_found"])
    assert row["high"] - row["low"] <= 40 and row["benign_low"] <= row["benign"] <= row["benign_high"]
    assert results["meta"]["detector"] == new_detector("shapes").facts()
    assert results["worst"][0]["value"] == row["score"] and results["differences"] == results["curves"] == []
