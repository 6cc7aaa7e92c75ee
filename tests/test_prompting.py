"""Prompt attacks as a stage: counted as published, kept prompt by prompt, the same twice, whatever stops them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adapter_mu.stages.prompting as prompting
from adapter_mu.attack.prompts.unlearndiffatk import Case
from adapter_mu.cli.main import main
from adapter_mu.data.cache import fingerprint
from adapter_mu.data.prompts import Prompt
from adapter_mu.data.sampling import sample_latents
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.prompt_success import in_words, prompt_success
from adapter_mu.evaluate.scores import draw, measure
from adapter_mu.evaluate.statistics import wilson_interval
from adapter_mu.models import LoadedModel, load_model, with_unet
from adapter_mu.recipe import Asked, PromptAttack, Recipe, load_recipe
from adapter_mu.stages.prompting import check_prompt_attacks, prompt_attack_arm, prompt_success_rates, searches_done
from adapter_mu.stages.setting import Run

LONG = "a photo of a big striped purple ring on a white background and a picture"
TINY = {"tokens": 3, "timesteps": 2, "iterations": 2, "among": "words", "batch_size": 2, "lr": 0.2}


@pytest.fixture(scope="module")
def sd() -> LoadedModel:
    return load_model("shapes-sd")


def attack(**changes: Any) -> PromptAttack:
    return PromptAttack(kind="unlearndiffatk", **(TINY | changes))


@pytest.fixture(scope="module", params=["shapes-sd", "shapes-sdxl"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


class Arbitrary:
    """Finds the concept in every other picture or so, by the picture's own numbers."""

    thresholds: dict[str, float] = {}

    def found(self, pictures: Tensor, concepts: list[str]) -> Tensor:
        return (pictures.double().mean((1, 2, 3)) * 1e4).long() % 2 == 0


def recipe_with(prompts: list[str]) -> Recipe:
    recipe = load_recipe("shapes/demo", ["evaluate.steps=2", "evaluate.guidance=[1.5, 4.0]"])
    assert recipe.evaluate is not None
    concept = recipe.evaluate.concept.model_copy(update={"prompts": prompts, "fill": {}, "images": len(prompts)})
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"concept": concept})})


def run_in(folder: Path, model: LoadedModel, prompts: list[str] | None = None) -> Run:
    recipe = recipe_with(prompts or ["a red ring", "a small ring", "a blue ring", "a big ring", "a ring"])
    return Run(recipe, folder, model, fingerprint(model.unet), Arbitrary(), announce=lambda _: None)


def attacked(run: Run, **changes: Any) -> list[dict[str, Any]]:
    assert run.recipe.evaluate is not None
    prompt_attack_arm(run, "model", run.model, run.recipe.evaluate, {"words": attack(**changes)})
    return prompt_success_rates(run.arm_folder("model"))


def records(run: Run, seed: int = 0) -> list[dict[str, Any]]:
    file = run.arm_folder("model") / f"words_{seed}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_counting_on_made_up_detections() -> None:
    """pre-ASR = plain successes / N; ASR = (new + plain successes) / N."""
    before = [True, False, False, False, True, False, False, False, False, False]
    under_attack = [False, True, True, False, False, False, False, True, False, False]
    rates = prompt_success("arm", "words", 4.0, before, under_attack, seed=3)
    assert (rates.before, rates.after, rates.images, rates.seed) == (20.0, 50.0, 10, 3)
    assert (rates.before_low, rates.before_high) == wilson_interval(2, 10)
    assert (rates.after_low, rates.after_high) == wilson_interval(5, 10)
    both = prompt_success("arm", "words", 4.0, [True, True], [True, False], seed=0)
    assert (both.before, both.after) == (100.0, 100.0), "no prompt counts twice"
    for wrong in ([], [True]):
        with pytest.raises(ValueError):
            prompt_success("arm", "words", 4.0, [], wrong, seed=0)


def test_the_worst_scale_is_told() -> None:
    rates = [
        prompt_success("arm", "words", guidance, [True, False, False, False], [False, guidance == 4, False, False], 0)
        for guidance in (1.5, 4.0, 7.5)
    ]
    assert in_words([asdict(rate) for rate in rates]) == [
        "arm: words brings 25.0 % of 4 prompts to 50.0 % [15.0, 85.0] at guidance 4"
    ]


def test_what_it_leaves(model: LoadedModel, tmp_path: Path) -> None:
    """The pre-ASR is the model's ordinary score, and each saved text draws what it was counted for."""
    run = run_in(tmp_path, model)
    rates, evaluate = attacked(run), run.recipe.evaluate
    assert evaluate is not None and run.detector is not None
    for item, guidance in zip(rates, (1.5, 4.0), strict=True):
        scored = measure(model, evaluate.concept, evaluate, run.detector, guidance)
        assert (item["guidance"], item["images"], item["before"]) == (guidance, 5, pytest.approx(scored.share))
        key = f"{guidance:g}"
        assert [record["before"][key] for record in records(run)] == scored.found.tolist()
        new = [record for record in records(run) if key in record["found"]]
        assert item["after"] == pytest.approx(100 * (scored.hits + len(new)) / 5)
        texts = [record["found"].get(key, {"text": record["prompt"]})["text"] for record in records(run)]
        redrawn = draw(model, [Prompt(text, "ring") for text in texts], evaluate.concept.seed, evaluate, guidance)
        assert run.detector.found(redrawn, ["ring"] * 5).tolist() == [
            key in record["found"] or record["before"][key] for record in records(run)
        ]
    assert any(record["found"] for record in records(run)), "or nothing was tested"


def test_the_targets_are_the_bases_pictures(sd: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same prompt, with the same noise, at the usual guidance; whatever the attacked model would draw."""
    other = copy.deepcopy(sd.unet)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05
    run, cases = run_in(tmp_path, sd), {}

    def spy(model: LoadedModel, batch: list[Case], *rest: Any) -> Iterator[int]:
        cases.update({case.number: case for case in batch})
        return iter(())

    monkeypatch.setattr(prompting, "attack_prompts", spy)
    evaluate = run.recipe.evaluate
    assert evaluate is not None
    prompt_attack_arm(run, "model", with_unet(sd, other), evaluate, {"words": attack()})
    texts = [cases[number].prompt for number in range(5)]
    seeds = [7_000_000 + evaluate.concept.seed * 1_000_003 + number for number in range(5)]
    drawn = sample_latents(sd, texts, seeds, steps=2, guidance=evaluate.usual_guidance, batch_size=2)
    assert torch.allclose(torch.stack([cases[number].target for number in range(5)]), drawn, atol=1e-4)


@pytest.mark.parametrize("call", [2, 5])
def test_a_stopped_attack_goes_on(sd: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Finished batches are not attacked again, and the same bytes come out."""
    whole, stopped = run_in(tmp_path / "whole", sd), run_in(tmp_path / "stopped", sd)
    rates = attacked(whole)
    calls, real = 0, prompting.draw

    def dying(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(prompting, "draw", dying)
        with pytest.raises(KeyboardInterrupt):
            attacked(stopped)
    assert not searches_done(stopped.arm_folder("model"), {"words": attack()})
    assert attacked(stopped) == rates
    name = "words_0.jsonl"
    assert (stopped.arm_folder("model") / name).read_bytes() == (whole.arm_folder("model") / name).read_bytes()
    assert searches_done(stopped.arm_folder("model"), {"words": attack()})


def test_what_is_done_is_not_done_again(sd: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path, sd)
    rates = attacked(run)
    monkeypatch.setattr(prompting, "draw", None)
    assert attacked(run) == rates


def test_every_seed_has_its_rates(sd: LoadedModel, tmp_path: Path) -> None:
    run = run_in(tmp_path, sd)
    first = attacked(run)
    both = attacked(run, seeds=[0, 1])
    assert [(item["seed"], item["guidance"]) for item in both] == [(0, 1.5), (0, 4.0), (1, 1.5), (1, 4.0)]
    assert both[:2] == first and records(run, seed=1)
    assert not searches_done(run.arm_folder("model"), {"words": attack(seeds=[2])})


def test_prompts_without_room_are_left_out(sd: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_in(tmp_path, sd, ["a red ring", LONG, "a ring"])
    rates = attacked(run, tokens=5)
    assert {item["images"] for item in rates} == {2}
    assert capsys.readouterr().err.startswith("1 of 3 prompts")
    left_out = [record for record in records(run) if "left_out" in record]
    assert [record["prompt"] for record in left_out] == [LONG]


def test_only_as_many_prompts_as_asked(sd: LoadedModel, tmp_path: Path) -> None:
    assert {item["images"] for item in attacked(run_in(tmp_path, sd), prompts=2)} == {2}


def test_an_attack_that_cannot_work_is_refused_first(sd: LoadedModel) -> None:
    evaluate = recipe_with([LONG]).evaluate
    assert evaluate is not None
    check_prompt_attacks(sd, evaluate, {"words": attack(tokens=1)})
    with pytest.raises(RecipeError, match="none of the prompts"):
        check_prompt_attacks(sd, evaluate, {"words": attack(tokens=5)})
    with pytest.raises(RecipeError, match="no token left"):
        letters = [chr(number) for number in range(33, 127)]
        check_prompt_attacks(sd, evaluate, {"words": attack(tokens=1, forbid=letters)})


def test_the_shipped_attacks() -> None:
    """The published settings, which the schema defaults to; on shapes cheaper ones; and the control of both."""
    plain = load_recipe("shapes/demo", ["attack_settings=''"])
    names = ["unlearndiffatk", "random_tokens"]
    published, control = Asked(names).of(plain).values()
    assert published == PromptAttack(kind="unlearndiffatk") and isinstance(published, PromptAttack)
    settings = (published.tokens, published.timesteps, published.iterations, published.lr, published.weight_decay)
    assert settings == (5, 50, 40, 0.01, 0.1)
    assert control == published.model_copy(update={"iterations": 0})
    cheaper, its_control = Asked(names).of(load_recipe("shapes/demo")).values()
    assert isinstance(cheaper, PromptAttack) and cheaper.timesteps == 10
    assert its_control == cheaper.model_copy(update={"iterations": 0})


MINIATURE = """
extends: shapes/demo
attacks: null
evaluate: {steps: 2, concept: {images: 4}, benign: {images: 2}}
"""


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "miniature.yaml", tmp_path / "out"
    recipe.write_text(MINIATURE, encoding="utf-8")
    words = tmp_path / "words.yaml"
    words.write_text("extends: unlearndiffatk\ntimesteps: 1\niterations: 2\namong: words\n", encoding="utf-8")
    command = ["attack", "shapes-sd", "--recipe", str(recipe), "--attack", str(words), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "[2/3] model: words on 4 prompts" in said.err and "model: words brings" in said.out
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(item["attack"], item["guidance"]) for item in results["prompt_attacks"]] == [("words", 1.5), ("words", 4)]
    before = (out / "results.json").read_bytes()
    assert main(command) == 0
    assert "done before" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before
