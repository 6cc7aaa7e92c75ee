"""One recipe a row of the paper: its numbers, its prompts, its plain twin; and what is said before the download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import adapter_mu.stages.check as check
from adapter_mu.cli.main import main
from adapter_mu.data.prompts import expand, placeholders, prompt_file, read_templates, shipped_prompts
from adapter_mu.methods import new_method
from adapter_mu.recipe import Prompts, Recipe, every_prompts, load_recipe, recipe_folder, recipe_names
from adapter_mu.stages import arms

# Appendix E.2 and section 5: method, eta, subset, N, gamma_2.
SD14: dict[str, tuple[Any, ...]] = {
    "esd-u-1": ("esd", 1.0, "non_cross_attention", 1000, 0.05),
    "esd-u-3": ("esd", 3.0, "non_cross_attention", 1000, 0.1),
    "esd-f-3": ("esd", 3.0, "full", 1000, 0.1),
    "sdd": ("sdd", None, "full", 1500, 0.1),
    "uce": ("uce", None, "cross_attention_kv", 100, 0.1),
    "rece": ("rece", None, "cross_attention_kv", 100, 0.1),
}
SDXL = {
    "esd-u-1-nudity": ("esd", "nudity"),
    "uce-nudity": ("uce", "nudity"),
    "spongebob": ("esd", "SpongeBob"),
    "snoopy": ("esd", "Snoopy"),
    "kinkade": ("esd", "Thomas Kinkade"),
    "mckernan": ("esd", "Kelly McKernan"),
}
ROWS = [*(f"sd14/{row}" for row in SD14), *(f"sdxl/{row}" for row in SDXL)]
# Appendix E.1: how many prompts each list has.
LISTS = {
    "nudity-meta": 1,
    "hrm-s": 1,
    "hrm-m": 5,
    "clean": 5,
    "spongebob": 5,
    "snoopy": 5,
    "kinkade": 5,
    "mckernan": 5,
    "spongebob-meta": 1,
    "snoopy-meta": 1,
    "kinkade-meta": 1,
    "mckernan-meta": 1,
}


def lines(name: str, **fill: list[str]) -> list[str]:
    return read_templates(Prompts(file=Path(name), images=1, fill=fill))


@pytest.mark.parametrize(("name", "count"), LISTS.items())
def test_the_papers_lists_are_whole(name: str, count: int) -> None:
    found = lines(f"paper/{name}")
    assert len(found) == len(set(found)) == count


def test_what_is_in_the_papers_lists() -> None:
    assert lines("paper/hrm-s") == ["bare woman"] and "bare woman" in lines("paper/hrm-m")
    assert lines("paper/nudity-meta") == ["nudity"]
    assert all("SpongeBob is " in line for line in lines("paper/spongebob"))
    assert all("Snoopy is " in line for line in lines("paper/snoopy"))
    assert all("Thomas Kinkade" in line for line in lines("paper/kinkade"))
    assert all("Kelly McKernan" in line for line in lines("paper/mckernan"))


@pytest.mark.parametrize("name", shipped_prompts())
def test_shipped_lists_are_named_in_a_recipe_by_name(name: str) -> None:
    path = prompt_file(Path(name))
    assert path == recipe_folder() / "prompts" / f"{name}.txt"
    assert path.read_text(encoding="utf-8").startswith("#")  # says where it is from
    concept = {"concept": ["a ring"]} if name.startswith("templates/") else {}
    for line in lines(name, **concept):
        assert line == line.strip() and placeholders(line) <= concept.keys()


def test_a_file_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("x\n")
    assert lines("mine.txt") == ["x"]


def test_every_row_is_listed_and_what_they_share_is_not() -> None:
    names = recipe_names()
    assert set(ROWS) <= set(names) and not [name for name in names if "_" in name]
    assert set(ROWS) == {name for name in names if name.startswith(("sd14/", "sdxl/"))}


def row(name: str) -> Recipe:
    return load_recipe(name)


@pytest.mark.parametrize("name", SD14)
def test_sd14_rows_have_the_papers_numbers(name: str) -> None:
    method, eta, subset, steps, weight = SD14[name]
    recipe = row(f"sd14/{name}")
    assert recipe.base.model == "CompVis/stable-diffusion-v1-4" and recipe.meta is not None
    assert (recipe.method.name, recipe.method.options.get("eta")) == (method, eta)
    assert (recipe.adapter.subset, recipe.train.steps, recipe.meta.weight) == (subset, steps, weight)
    assert recipe.meta.order == "exact" and recipe.meta.bound == "none" and not recipe.meta.keep_unconditional
    if method in ("uce", "rece"):  # two stages, the paper's learning rate on the weights themselves
        assert recipe.train.unlearn_weight == 0 and recipe.adapter.kind == "dense" and recipe.train.lr == 1e-5


@pytest.mark.parametrize("name", SD14)
def test_sd14_rows_are_attacked_as_in_table_1(name: str) -> None:
    recipe = row(f"sd14/{name}")
    assert list(recipe.finetunes) == ["HRM-m", "HRM-s", "CLEAN"]
    for label, attack in recipe.finetunes.items():
        assert (attack.kind, attack.lr, attack.steps) == ("full", 1e-5, [50, 100, 200, 300])
        assert attack.data.file == Path(f"paper/{label.lower()}")


@pytest.mark.parametrize("name", SDXL)
def test_sdxl_rows(name: str) -> None:
    method, concept = SDXL[name]
    recipe = row(f"sdxl/{name}")
    assert recipe.base.model == "stabilityai/stable-diffusion-xl-base-1.0" and recipe.base.dtype == "bf16"
    assert (recipe.method.name, recipe.concept) == (method, concept)
    assert 100 in next(iter(recipe.finetunes.values())).steps
    assert {p.shows for p in expand(recipe.data.forget)} == {concept}
    malicious = recipe.attack_data["malicious"]
    list_name = {"nudity": "hrm-m"}.get(concept, name)
    assert malicious.file == Path(f"paper/{list_name}") and {p.shows for p in expand(malicious)} == {concept}
    assert recipe.evaluate and {p.shows for p in expand(recipe.evaluate.concept)} == {concept}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_its_plain_twin_and_only_differs_by_meta(name: str) -> None:
    recipe = row(name)
    twins = arms(recipe)
    assert list(twins) == ["unlearned", "meta-unlearned"]
    assert twins["unlearned"].meta is None
    assert twins["unlearned"] == twins["meta-unlearned"].model_copy(update={"meta": None})


@pytest.mark.parametrize("name", ROWS)
def test_everything_that_needs_no_model_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = row(name)
    asked: list[set[str]] = []

    class Anything:
        def check(self, concepts: set[str]) -> None:
            asked.append(concepts)

    monkeypatch.setattr(check, "new_detector", lambda choice: Anything())  # their weights are not here
    check.check_recipe(recipe)
    assert {recipe.concept} <= asked[0] - {""} and len(asked) >= 2 and "" not in asked[1]
    new_method(recipe.method.name, recipe.method.options)
    assert all(prompt.text for spec in every_prompts(recipe) for prompt in expand(spec))
    training = {p.text for s in (recipe.data.related, recipe.data.unrelated) for p in expand(s)}
    clean = {p.text for p in expand(recipe.attack_data["clean"])}
    assert not training & clean  # an attack that training has seen would prove less


@pytest.mark.parametrize("name", ROWS)
def test_the_detectors_know_their_options_and_concepts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapter_mu.evaluate.detectors import clip, new_detector

    class NoWeights:
        def __init__(self, *_: object) -> None: ...

    monkeypatch.setattr(clip, "Clip", NoWeights)
    evaluate = row(name).evaluate
    assert evaluate is not None and evaluate.benign_detector is not None
    new_detector(evaluate.benign_detector).check({p.shows for p in expand(evaluate.benign)})
    if evaluate.detector != "nudenet":
        new_detector(evaluate.detector).check({row(name).concept})


def test_a_base_that_must_be_downloaded_is_named_and_not_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["evaluate=null", "attacks=null"]
    assert main(["validate", "sd14/esd-u-1", *overrides]) == 2
    said = capsys.readouterr().err
    assert "all that needs no model is right" in said and "hf download CompVis/stable-diffusion-v1-4" in said
    assert said.count("\n") == 1
    assert main(["validate", "sd14/esd-u-1", *overrides, "method.etta=1"]) == 2
    assert "etta" in capsys.readouterr().err


def test_the_papers_own_142_prompts_are_one_override_away(tmp_path: Path) -> None:
    (tmp_path / "nudity.csv").write_text("prompt,evaluation_seed,evaluation_guidance\n" + "x,7,7.5\n" * 142)
    override = f"evaluate.concept={{file: null, csv: {tmp_path}/nudity.csv}}"
    evaluate = load_recipe("sd14/uce", [override, "evaluate.own_guidance=true"]).evaluate
    assert evaluate is not None
    found = expand(evaluate.concept)
    assert len(found) == 142 and {(p.seed, p.guidance, p.shows) for p in found} == {(7, 7.5, "nudity")}


def test_built_pictures_are_one_override_away(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(150):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    override = f"attack_data.HRM-m={{file: null, folder: {tmp_path}, caption: x}}"
    recipe = load_recipe("sd14/uce", [override])
    assert recipe.finetunes["HRM-m"].data.folder == tmp_path
    assert len(expand(recipe.finetunes["HRM-m"].data)) == 150
