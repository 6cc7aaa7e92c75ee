"""Prompt attacks as a stage: counted as published, kept prompt by prompt, the same twice, whatever stops them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import adapter_mu.stages.prompting as prompting
from adapter_mu.data.cache import fingerprint
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.prompt_success import prompt_success
from adapter_mu.evaluate.scores import measure
from adapter_mu.evaluate.statistics import wilson_interval
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.recipe import PromptAttack, Recipe, load_recipe
from adapter_mu.stages.prompting import check_prompt_attacks, prompt_attack_arm, prompt_success_rates, searches_done
from adapter_mu.stages.setting import Run

LONG = "a photo of a big striped purple ring on a white background and a picture"
TINY = {"tokens": 3, "timesteps": 2, "iterations": 2, "among": "words", "batch_size": 2, "lr": 0.2}


def attack(**changes: Any) -> PromptAttack:
    return PromptAttack(kind="unlearndiffatk", **(TINY | changes))


@pytest.fixture(scope="module", params=["shapes-sd", "shapes-sdxl"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


def recipe_with(prompts: list[str]) -> Recipe:
    """Too few sampler steps to draw well, so that some prompts succeed and some do not."""
    recipe = load_recipe("shapes/demo", ["evaluate.steps=2", "evaluate.guidance=[1.5, 4.0]"])
    assert recipe.evaluate is not None
    concept = recipe.evaluate.concept.model_copy(update={"prompts": prompts, "fill": {}, "images": len(prompts)})
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"concept": concept})})


def run_in(folder: Path, model: LoadedModel, prompts: list[str] | None = None) -> Run:
    recipe = recipe_with(prompts or ["a red ring", "a small ring", "a blue ring", "a big ring", "a ring"])
    return Run(recipe, folder, model, fingerprint(model.unet), new_detector("shapes"), announce=lambda _: None)


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
        again = evaluate.concept.model_copy(update={"prompts": _texts(run, key)})
        redrawn = measure(model, again, evaluate, run.detector, guidance).found.tolist()
        assert all(redrawn[record["number"]] and not record["before"][key] for record in new)
    assert any(record["found"] for record in records(run)), "or nothing was tested"


def _texts(run: Run, key: str) -> list[str]:
    return [record["found"].get(key, {"text": record["prompt"]})["text"] for record in records(run)]


@pytest.mark.parametrize("call", [2, 5])
def test_a_stopped_attack_goes_on(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Finished batches are not attacked again, and the same bytes come out."""
    whole, stopped = run_in(tmp_path / "whole", model), run_in(tmp_path / "stopped", model)
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


def test_what_is_done_is_not_done_again(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path, model)
    rates = attacked(run)
    monkeypatch.setattr(prompting, "draw", None)
    assert attacked(run) == rates


def test_every_seed_has_its_rates(model: LoadedModel, tmp_path: Path) -> None:
    run = run_in(tmp_path, model)
    first = attacked(run)
    both = attacked(run, seeds=[0, 1])
    assert [(item["seed"], item["guidance"]) for item in both] == [(0, 1.5), (0, 4.0), (1, 1.5), (1, 4.0)]
    assert both[:2] == first and records(run, seed=1)
    assert not searches_done(run.arm_folder("model"), {"words": attack(seeds=[2])})


def test_prompts_without_room_are_left_out(
    model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path, model, ["a red ring", LONG, "a ring"])
    rates = attacked(run, tokens=5)
    assert {item["images"] for item in rates} == {2}
    assert capsys.readouterr().err.startswith("1 of 3 prompts")
    left_out = [record for record in records(run) if "left_out" in record]
    assert [record["prompt"] for record in left_out] == [LONG]


def test_only_as_many_prompts_as_asked(model: LoadedModel, tmp_path: Path) -> None:
    assert {item["images"] for item in attacked(run_in(tmp_path, model), prompts=2)} == {2}


def test_an_attack_that_cannot_work_is_refused_first(model: LoadedModel) -> None:
    evaluate = recipe_with([LONG]).evaluate
    assert evaluate is not None
    check_prompt_attacks(model, evaluate, {"words": attack(tokens=1)})
    with pytest.raises(RecipeError, match="none of the prompts"):
        check_prompt_attacks(model, evaluate, {"words": attack(tokens=5)})
    with pytest.raises(RecipeError, match="no token left"):
        letters = [chr(number) for number in range(33, 127)]
        check_prompt_attacks(model, evaluate, {"words": attack(tokens=1, forbid=letters)})
