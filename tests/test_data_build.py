"""Building picture sets: what is drawn, from which seeds, stopped and continued, nothing foreign touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_flux import tiny_flux
from tiny_pipelines import tiny_sd
from tiny_runs import tiny_recipe

from adapter_mu.cli.main import main
from adapter_mu.data.build import Drawn, Imported, build_set
from adapter_mu.data.collect import build_sets, chosen_sets, recipe_sets
from adapter_mu.data.concepts import concept_sets
from adapter_mu.data.contact_sheet import CAPTION, CELL, GAP, contact_sheet
from adapter_mu.data.folders import captioned
from adapter_mu.data.painter import Drawing, Painter, load_painter
from adapter_mu.data.prompts import expand, shipped_prompts
from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.recipe import Prompts

RINGS = Prompts(prompts=["a ring", "a star"], images=6, shows="ring")


class Brush:
    """A painter of plain colours that can be stopped; it counts what it was asked for."""

    def __init__(self, identity: str = "brush", stop_after: int | None = None) -> None:
        self.identity, self.left = identity, stop_after
        self.asked: list[tuple[str, int, float | None]] = []

    def paint(self, texts: Sequence[str], seeds: Sequence[int], how: Drawing) -> list[Image.Image]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.asked += [(text, seed, how.guidance) for text, seed in zip(texts, seeds, strict=True)]
        colours = [(seed % 256, seed // 256 % 256, len(text)) for text, seed in zip(texts, seeds, strict=True)]
        return [Image.new("RGB", (8, 8), colour) for colour in colours]


def drawn(brush: Brush, spec: Prompts = RINGS, how: Drawing = Drawing(), batch_size: int = 2) -> Drawn:  # noqa: B008
    return Drawn(brush, spec, how, batch_size)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# A set


def test_a_set_is_an_imagefolder_that_a_recipe_can_use(tmp_path: Path) -> None:
    sheet = build_set(drawn(Brush()), tmp_path / "forget")
    lines = [json.loads(line) for line in (tmp_path / "forget" / "metadata.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"file_name", "text"}] * 6
    assert [line["text"] for line in lines] == [prompt.text for prompt in expand(RINGS)]
    assert [text for _, text in captioned(Prompts(folder=tmp_path / "forget"))] == [line["text"] for line in lines]
    assert {line["file_name"] for line in lines} == {p.name for p in (tmp_path / "forget").glob("*.png")}
    assert sheet == tmp_path / "forget.png" and sheet.is_file()


def test_a_stopped_build_continues_to_the_same_bytes(tmp_path: Path) -> None:
    build_set(drawn(Brush()), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build_set(drawn(Brush(stop_after=2)), tmp_path / "stopped")
    assert len(list((tmp_path / "stopped").iterdir())) == 4  # pictures only: the set is not announced half made
    rest = Brush()
    build_set(drawn(rest), tmp_path / "stopped")
    assert len(rest.asked) == 2
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def test_a_finished_build_draws_nothing(tmp_path: Path) -> None:
    build_set(drawn(Brush()), tmp_path / "set")
    again = Brush(stop_after=0)
    build_set(drawn(again), tmp_path / "set")
    assert again.asked == []


def test_more_pictures_keep_those_there_are(tmp_path: Path) -> None:
    build_set(drawn(Brush()), tmp_path / "set")
    more = Brush()
    build_set(drawn(more, RINGS.model_copy(update={"images": 10})), tmp_path / "set")
    assert len(more.asked) == 4
    assert len(list((tmp_path / "set").glob("*.png"))) == 10


@pytest.mark.parametrize(
    "other",
    [
        lambda: drawn(Brush("other weights")),
        lambda: drawn(Brush(), RINGS.model_copy(update={"seed": 1})),
        lambda: drawn(Brush(), RINGS.model_copy(update={"prompts": ["a cross"]})),
        lambda: drawn(Brush(), how=Drawing(steps=3)),
        lambda: drawn(Brush(), how=Drawing(negative="blurry")),
        lambda: drawn(Brush(), RINGS.model_copy(update={"images": 4})),
    ],
)
def test_pictures_of_another_build_are_never_mixed_in_or_deleted(tmp_path: Path, other: Callable[[], Drawn]) -> None:
    build_set(drawn(Brush()), tmp_path / "set")
    before = content(tmp_path / "set")
    with pytest.raises(RecipeError, match="holds pictures of another build"):
        build_set(other(), tmp_path / "set")
    assert content(tmp_path / "set") == before


def test_batches_do_not_matter(tmp_path: Path) -> None:
    for size in (1, 4):
        build_set(drawn(Brush(), batch_size=size), tmp_path / str(size))
    assert content(tmp_path / "1") == content(tmp_path / "4")


def test_a_csvs_seeds_and_guidance_are_used(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("prompt,sd_seed,sd_guidance_scale\nx,7,13\ny,8,\nz,9,13\nx,7,13\n")
    brush = Brush()
    build_set(drawn(brush, Prompts(csv=tmp_path / "list.csv"), Drawing(guidance=2.0)), tmp_path / "set")
    assert brush.asked == [("x", 7, 13.0), ("z", 9, 13.0), ("y", 8, 2.0)]
    assert len((tmp_path / "set" / "metadata.jsonl").read_text().splitlines()) == 3  # the fourth row is the first


def test_equal_prompts_have_different_seeds() -> None:
    seeds = drawn(Brush(), Prompts(prompts=["bare tree"], images=20)).seeds
    assert len(set(seeds)) == 20 and all(0 <= seed < 2**32 for seed in seeds)


def test_own_pictures_are_imported_in_one_size(tmp_path: Path) -> None:
    for i, size in enumerate(((40, 20), (20, 30))):
        path = tmp_path / "own" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (200, 10 * i, 0)).save(path)
    build_set(Imported(Prompts(folder=tmp_path / "own", caption="a ring"), 16), tmp_path / "set")
    found = captioned(Prompts(folder=tmp_path / "set"))
    assert [text for _, text in found] == ["a ring", "a ring"]
    assert {Image.open(path).size for path, _ in found} == {(16, 16)}


def test_a_contact_sheet_shows_every_picture_with_its_caption(tmp_path: Path) -> None:
    pictures = []
    for i, size in enumerate([(8, 8), (400, 100), (200, 200)] * 3):
        Image.new("RGB", size, "red").save(tmp_path / f"{i}.png")
        pictures.append((tmp_path / f"{i}.png", "a very long caption " * 9))
    contact_sheet(pictures, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (GAP + 8 * (CELL + GAP), GAP + 2 * (CELL + CAPTION + GAP))
    middle = GAP + CELL // 2
    assert sheet.getpixel((middle, middle)) == (255, 0, 0)
    assert sheet.getpixel((middle, middle + CELL + CAPTION + GAP)) == (255, 0, 0)
    band = sheet.crop((GAP, GAP + CELL, GAP + CELL, GAP + CELL + CAPTION))
    low, high = band.convert("L").getextrema()
    assert low < 30 and high == 255  # black letters on white


# Which sets


def test_a_concept_needs_no_lists() -> None:
    sets = concept_sets("SpongeBob", ["Patrick Star", "Squidward"], images=20)
    assert list(sets) == ["forget", "related", "unrelated", "attack", "clean"]
    texts = {name: [p.text for p in expand(spec)] for name, spec in sets.items()}
    assert all(len(found) == 20 for found in texts.values())
    assert all("SpongeBob" in text for name in ("forget", "attack") for text in texts[name])
    assert not any("SpongeBob" in text for name in ("related", "unrelated", "clean") for text in texts[name])
    assert all("Patrick Star" in text or "Squidward" in text for text in texts["related"])
    assert not set(texts["forget"]) & set(texts["attack"])
    assert {p.shows for p in expand(sets["forget"])} == {"SpongeBob"}
    assert len({spec.seed for spec in sets.values()}) == 5


def test_styles_have_templates_of_their_own() -> None:
    sets = concept_sets("Thomas Kinkade", ["Claude Monet"], ["Andy Warhol"], kind="style", images=5)
    assert "a painting by Thomas Kinkade" in [p.text for p in expand(sets["forget"])]
    assert all("Andy Warhol" in p.text for p in expand(sets["unrelated"]))


def test_a_concept_is_never_in_its_own_benign_sets() -> None:
    sets = concept_sets("dog", images=30)
    assert "related" not in sets
    assert not any("dog" in p.text for name in ("unrelated", "clean") for p in expand(sets[name]))
    with pytest.raises(RecipeError, match="'Dog' is the concept itself"):
        concept_sets("dog", ["cat", "Dog"])
    with pytest.raises(RecipeError, match="concept is empty"):
        concept_sets(" ")
    with pytest.raises(RecipeError, match="Every prompt of .* names 'a'"):
        concept_sets("a")


def test_the_sets_of_a_recipe() -> None:
    attack = {"data": {"prompts": ["x"], "images": 2}}
    recipe = tiny_recipe(
        attack_data={"malicious": {"prompts": ["y"], "images": 3}},
        attacks={"full": {"data": "malicious"}, "own": attack},
    )
    found = recipe_sets(recipe)
    assert set(found) == {"forget", "related", "unrelated", "malicious", "own"}
    assert found["own"].images == 2 and found["malicious"].images == 3
    only = chosen_sets(recipe, None, ["extra=paper/clean"], images=7, only=["own", "extra"])
    assert {name: spec.images for name, spec in only.items()} == {"own": 7, "extra": 7}


def test_named_sets_know_their_kind(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("prompt\nx\n")
    named = [f"a={tmp_path}", f"b={tmp_path}/list.csv", "c=paper/snoopy"]
    found = chosen_sets(None, None, named, caption="x", seed=4)
    assert (found["a"].folder, found["a"].caption, found["a"].images) == (tmp_path, "x", 0)
    assert found["b"].csv == tmp_path / "list.csv" and found["b"].images == 0
    assert (str(found["c"].file), found["c"].images, found["c"].seed) == ("paper/snoopy", 30, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((tiny_recipe(), "ring", []), "keep one"),
        ((None, None, []), "nothing to build"),
        ((None, None, ["forget"]), "must look like NAME=SOURCE"),
        ((None, None, ["../x=paper/clean"]), "must look like NAME=SOURCE"),
    ],
)
def test_what_is_asked_for_is_checked(arguments: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        chosen_sets(*arguments)


def test_an_unknown_only_is_refused() -> None:
    with pytest.raises(RecipeError, match="no set 'x' to build; there are forget, related, unrelated"):
        chosen_sets(tiny_recipe(), None, [], only=["x"])


def test_everything_is_checked_before_the_first_picture(tmp_path: Path) -> None:
    bad = {
        "missing list": Prompts(file=Path("paper/none"), images=1),
        "tiny pictures": Prompts(folder=tmp_path / "own", caption="x"),
        "foreign": RINGS,
    }
    (tmp_path / "own").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "own" / "a.png")
    (tmp_path / "foreign").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign" / "a.png")
    for name, spec in bad.items():
        brush = Brush()
        with pytest.raises(RecipeError):
            build_sets(
                {"first": RINGS, name: spec},
                tmp_path,
                lambda brush=brush: brush,  # type: ignore[misc]
                Drawing(),
                batch_size=2,
                say=lambda text: None,
            )
        assert brush.asked == [] and not (tmp_path / "first").exists()


# Painters


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_any_diffusers_pipeline_paints(tmp_path: Path, kind: str) -> None:
    pipeline = tiny_sd() if kind == "sd" else tiny_flux()
    pipeline.save_pretrained(tmp_path / kind)
    painter = load_painter(str(tmp_path / kind))
    how = Drawing(steps=2, guidance=3.0, size=16)
    together = painter.paint(["a ring", "a star"], [5, 6], how)
    alone = painter.paint(["a star"], [6], how)
    assert [picture.size for picture in together] == [(16, 16)] * 2
    expected, found = (torch.tensor(list(picture.tobytes()), dtype=torch.float) for picture in (alone[0], together[1]))
    assert (expected - found).abs().max() <= 1  # a batch rounds differently
    assert load_painter(str(tmp_path / kind)).identity == painter.identity


def test_a_painters_identity_is_that_of_its_parts(tmp_path: Path) -> None:
    pipeline = tiny_sd()
    seen = {Painter(pipeline, "x").identity, Painter(tiny_sd(), "y").identity}
    assert len(seen) == 1
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight.mul_(1.01)
    seen.add(Painter(pipeline, "x").identity)
    pipeline.scheduler.register_to_config(beta_end=0.013)
    seen.add(Painter(pipeline, "x").identity)
    assert len(seen) == 3


def test_pickles_are_refused(tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path / "model", safe_serialization=True)
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"cannot load .* with \.safetensors weights"):
        load_painter(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("source", "sentence"), [("no/such/model", "nothing to load"), ("empty", r"has no model_index\.json")]
)
def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=sentence):
        load_painter(source)


def test_what_a_pipeline_does_not_take_is_said() -> None:
    painter = Painter(tiny_sd(), "tiny")
    painter.takes -= {"negative_prompt"}
    with pytest.raises(ModelError, match="takes no negative_prompt"):
        painter.paint(["a"], [1], Drawing(negative="x"))
    with pytest.raises(ModelError, match="needs a GPU"):
        load_painter("shapes-sd", offload="model")


# The command


def test_the_command_builds_and_says_how_a_recipe_uses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "build", "--concept", "ring", "--related", "circle", "--model", "shapes-sd"]
    command += ["--images", "2", "--steps", "2", "--device", "cpu", "--only", "related", "--only", "attack"]
    for _ in range(2):
        assert main([*command, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"related: 2 pictures in {tmp_path / 'related'}, contact sheet {tmp_path / 'related.png'}" in said
    assert f"data:\n  related:\n    folder: {tmp_path / 'related'}\nattacks:\n  attack:\n    data:" in said


def test_the_command_names_the_lists_and_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "lists"]) == 0
    assert capsys.readouterr().out.split() == shipped_prompts()
    assert main(["data", "build", "--set", "x=paper/clean", "--out", str(tmp_path)]) == 2
    assert "name a --model or a recipe" in capsys.readouterr().err
    assert main(["data", "build", "shapes/demo", "--concept", "x", "--out", str(tmp_path)]) == 2
