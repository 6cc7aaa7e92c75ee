"""The attack verb: what it is pointed at, what it leaves, and that it never measures twice or otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm_layout import save_single_file
from test_run import adapter_mu, contents, dying, interrupt
from tiny_pipelines import tiny_sd

import adapter_mu.run as verbs
import adapter_mu.stages.attacking as attacking
import adapter_mu.stages.scoring as scoring
from adapter_mu.data.cache import fingerprint
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.statistics import Row
from adapter_mu.export.merge import save_folder
from adapter_mu.models import load_model
from adapter_mu.recipe import load_recipe
from adapter_mu.stages import claim, find_victims, holds

SMALL = """
extends: shapes/demo
name: small
workers: 1
data: {sampler: {steps: 2}, keep_only_shown: false}
attacks:
  malicious: {data: {images: 4}, steps: [1, 2], batch_size: 2}
  clean: {data: {images: 4}, steps: [1], batch_size: 2}
evaluate: {steps: 2, concept: {images: 4}, benign: {images: 4}}
"""
ARMS = ("meta-unlearned", "unlearned")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "build_report", lambda folder: (folder / "report.html").write_text("report"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Path:
    """A run whose two arms are done: slightly different models, not yet attacked."""
    folder = tmp_path / "run"
    claim(load_recipe(str(recipe)), folder)
    for seed, arm in enumerate(ARMS):
        model = load_model("shapes-sd")
        with torch.no_grad():
            model.unet.conv_out.bias += 0.01 * (seed + 1)
        save_folder(model, folder / "arms" / arm / "merged")
    return folder


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def cells(folder: Path) -> set[tuple[Any, ...]]:
    return {tuple(row[key] for key in ("arm", "attack", "step", "seed")) for row in results(folder)["rows"]}


def attack(*arguments: str | Path) -> str:
    code, table, said = adapter_mu("attack", *arguments)
    assert code == 0, said
    return table


def refusal(*arguments: str | Path) -> str:
    code, out, said = adapter_mu("attack", *arguments)
    assert (code, out) == (2, "") and said.count("\n") == 1 and said.startswith("adapter-mu: "), said
    return said


def test_a_run_means_all_its_arms_and_takes_the_results(run: Path) -> None:
    table = attack(run, "--attack", "lora_r4", "--steps", "0,1,3")
    expected = {(arm, label, step, 0) for arm in ARMS for label, step in (("none", 0), ("lora_r4", 1), ("lora_r4", 3))}
    assert cells(run) == expected and all(arm in table for arm in ARMS)
    assert [line.split(":")[0] for line in table.splitlines()[-2:]] == [f"worst case of {arm}" for arm in ARMS]


def test_the_headline_is_the_worst_case() -> None:
    rows = [
        Row("m", "full", 4.0, 50, 40.0, 30.0, 50.0, 90.0, 100),
        Row("m", "lora", 1.5, 9, 45.5, 36, 56, 90, 100, seed=2),
    ]
    assert verbs.worst_case(rows) == "worst case of m: 45.5 (36.0 to 56.0), lora after 9 steps, guidance 1.5, seed 2"
    assert verbs.worst_case([]) == ""


def test_an_arm_means_itself_by_its_folder_or_its_merged_one(run: Path) -> None:
    attack(run / "arms" / "unlearned", "--attack", "clean")
    attack(run / "arms" / "meta-unlearned" / "merged", "--attack", "clean")
    assert cells(run) == {(arm, *cell, 0) for arm in ARMS for cell in (("none", 0), ("clean", 1))}


@pytest.mark.parametrize("form", ["folder", "file"])
def test_any_diffusers_folder_and_single_file_is_attacked(form: str, recipe: Path, tmp_path: Path) -> None:
    """As stock diffusers wrote the folder; the file in the original layout, its architecture from that folder."""
    pipeline = load_model("shapes-sd").pipeline
    pipeline.save_pretrained(tmp_path / "folder")
    save_single_file(pipeline, tmp_path / "file.safetensors")
    theirs = (
        [tmp_path / "folder"] if form == "folder" else [tmp_path / "file.safetensors", "--config", tmp_path / "folder"]
    )
    attack(*theirs, "--recipe", recipe, "--attack", "malicious", "--out", tmp_path / "out", "--name", "theirs")
    assert cells(tmp_path / "out") == {
        ("theirs", *cell, 0) for cell in (("none", 0), ("malicious", 1), ("malicious", 2))
    }


def test_sdxl_is_attacked_in_the_same_ways(tmp_path: Path) -> None:
    """Both text encoders learn the token."""
    (tmp_path / "small.yaml").write_text(SMALL.replace("shapes/demo", "shapes/sdxl"), encoding="utf-8")
    load_model("shapes-sdxl").pipeline.save_pretrained(tmp_path / "theirs")
    arguments = ("--attack", "lora_r4", "--attack", "textual_inversion", "--steps", "1", "--out", tmp_path / "out")
    attack(tmp_path / "theirs", "--recipe", tmp_path / "small.yaml", *arguments)
    assert {label for _, label, _, _ in cells(tmp_path / "out")} == {"none", "lora_r4", "textual_inversion"}


def test_built_in_models_have_a_recipe_and_others_must_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_victims("shapes-sd", None, [], None, None).recipe == load_recipe("shapes/demo")
    assert find_victims("shapes-sdxl", None, [], None, None).recipe == load_recipe("shapes/sdxl")
    found = find_victims("here/model.safetensors", "shapes/demo", [], None, None)
    assert (found.models, found.folder) == ({"model": "here/model.safetensors"}, Path("runs/attack-model"))
    assert "name with --recipe" in refusal("some/folder", "--attack", "full")


def test_seeds_are_curves_of_their_own_with_the_first_ones_pictures(run: Path) -> None:
    attack(run / "arms" / "unlearned", "--attack", "malicious", "--seeds", "0,5")
    attack(run / "arms" / "unlearned", "--attack", "malicious", "--seeds", "7", "--steps", "1")
    assert cells(run) == {
        ("unlearned", "none", 0, 0),
        *(("unlearned", "malicious", step, seed) for step in (1, 2) for seed in (0, 5)),
        ("unlearned", "malicious", 1, 7),
    }
    assert len(list((run / "pictures").glob("unlearned_malicious_*"))) == 4


def test_a_sweep_over_rates_is_an_attack_each(run: Path) -> None:
    attack(run / "arms" / "unlearned", "--attack", "malicious", "--lr", "1e-5,1e-4", "--steps", "1")
    assert {label for _, label, _, _ in cells(run)} == {"none", "malicious-lr1e-05", "malicious-lr0.0001"}


def test_the_same_attack_twice_is_the_same_pictures_and_scores(run: Path, tmp_path: Path) -> None:
    arguments = ("--attack", "lora_r4", "--attack", "textual_inversion", "--steps", "2")
    for place in ("a", "b"):
        attack(run / "arms" / "unlearned", *arguments, "--out", tmp_path / place)
    first, second = (contents(tmp_path / place) for place in ("a", "b"))
    assert first.keys() == second.keys() and len([name for name in first if name.endswith(".png")]) == 6
    assert [name for name in first if first[name] != second[name]] == []


def test_stopped_attacks_continue_and_measure_nothing_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two guidance scales of a step; afterwards only what is missing is trained for and measured."""
    arguments = ("attack", run / "arms" / "unlearned", "--attack", "malicious", "--attack", "clean")
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score_row", dying(scoring.score_row, 3, interrupt))
        code, _, said = adapter_mu(*arguments)
    assert code == 130 and said.splitlines()[-1].endswith("continues from what is saved.")
    with monkeypatch.context() as patch:
        calls: list[str] = []
        real = scoring.score_row
        patch.setattr(scoring, "score_row", lambda *a, **k: calls.append(k["attack"]) or real(*a, **k))
        assert adapter_mu(*arguments)[0] == 0
        assert len(calls) == 8 - 2, "two cells were saved: those before the attack"
    attack(run / "arms" / "unlearned", *arguments[2:], "--out", tmp_path / "whole")
    assert results(run)["rows"] == results(tmp_path / "whole")["rows"]

    def work(*_: object, **__: object) -> None:
        pytest.fail("all is measured")

    monkeypatch.setattr(attacking, "finetune", work)
    monkeypatch.setattr(scoring, "score_row", work)
    assert "done before" in adapter_mu(*arguments)[2]


def test_results_carry_versions_and_hashes(run: Path) -> None:
    attack(run / "arms" / "unlearned", "--attack", "malicious", "--attack", "lora_r16", "--steps", "1")
    meta = results(run)["meta"]
    assert {"torch", "diffusers", "peft", "python", "device"} <= meta["environment"].keys()
    assert re.fullmatch(r"[0-9a-f]{16}", meta["recipe_hash"]) and meta["command"].startswith("adapter-mu ")
    unet = load_model(str(run / "arms" / "unlearned" / "merged")).unet
    assert meta["models"]["unlearned"]["unet_hash"] == fingerprint(unet)
    attacks = meta["attacks"]["unlearned"]
    assert attacks.keys() == {"malicious", "lora_r16"} and attacks["lora_r16"]["settings"]["rank"] == 16
    assert len({attack["hash"] for attack in attacks.values()}) == 2


def test_another_attack_does_not_get_a_label_that_is_taken(run: Path) -> None:
    arm = run / "arms" / "unlearned"
    attack(arm, "--attack", "malicious", "--steps", "1")
    attack(arm, "--attack", "malicious", "--steps", "2", "--seeds", "0,1")
    before = contents(run)
    assert "has scores of another attack named 'malicious'" in refusal(arm, "--attack", "malicious", "--lr", "1e-3")
    assert contents(run) == before


def test_scores_of_added_attacks_stay_when_the_run_goes_on(run: Path) -> None:
    """`adapter-mu run` on the folder later puts them in its table too."""
    attack(run / "arms" / "unlearned", "--attack", "lora_r4", "--steps", "1")
    attack(run, "--attack", "clean")
    assert ("unlearned", "lora_r4", 1, 0) in cells(run) and ("meta-unlearned", "clean", 1, 0) in cells(run)


WRONG = {
    "attack that is not there": (["--attack", "magic"], "There is no attack 'magic'"),
    "suite that is not there": (["--suite", "magic"], "There is no attack file 'magic'"),
    "package that is not there": (["--attack", "adamw8bit"], "pip install bitsandbytes"),
    "name for several arms": (["--name", "x", "--attack", "clean"], "--name is for one model"),
    "recipe of a run changed in place": (["evaluate.steps=3"], "keeps its recipe"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_sentence_before_any_work(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapter_mu.attack.check.find_spec", lambda name: None)
    monkeypatch.setattr(verbs, "open_run", lambda *_: pytest.fail("work began"))
    before = contents(run)
    arguments, said = WRONG[name]
    assert said in refusal(run, *arguments)
    assert contents(run) == before


@pytest.mark.parametrize("flag", [("--steps", "-5"), ("--steps", "a"), ("--lr", "0"), ("--seeds", "1.5")])
def test_numbers_that_are_none_are_refused(flag: tuple[str, str], run: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        adapter_mu("attack", run, *flag)
    assert stopped.value.code == 2


def test_another_architecture_and_an_unfinished_run_are_refused(run: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "bare" / "arms").mkdir(parents=True)
    (tmp_path / "bare" / "recipe.yaml").write_text("name: x\n")
    assert "has no finished arm yet" in refusal(tmp_path / "bare")
    assert "is sdxl, but the recipe's base is sd" in refusal("shapes-sdxl", "--recipe", recipe, "--out", tmp_path / "o")
    tiny_sd().save_pretrained(tmp_path / "tiny")
    assert "reads 32x32 pictures" in refusal(tmp_path / "tiny", "--recipe", recipe, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_key_that_came_since_makes_no_other_recipe(run: Path, recipe: Path) -> None:
    """At its default; anything else is another recipe."""
    recorded = run / "recipe.yaml"
    text = recorded.read_text()
    assert "attack_data: {}\n" in text
    recorded.write_text(text.replace("attack_data: {}\n", ""))
    assert holds(run, load_recipe(str(recipe)))
    recorded.write_text(text.replace("attack_settings: shapes\n", ""))
    with pytest.raises(RecipeError, match="another recipe"):
        holds(run, load_recipe(str(recipe)))
