"""A plan is measured, not guessed: against real tensors at small sizes, and the numbers for SDXL at 1024x1024."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cases import tiny_unet
from real_sizes import real_models

from adapter_mu.errors import RecipeError
from adapter_mu.models import load_config
from adapter_mu.plan import GIB, advice, as_table, card_bytes, plan, save
from adapter_mu.plan import planning as planning_module
from adapter_mu.plan.advice import turned
from adapter_mu.plan.encoders import PARAMETERS
from adapter_mu.recipe import Recipe, load_recipe

advice_module = sys.modules["adapter_mu.plan.advice"]  # the package's own name `advice` is the function
SDXL = ("base.model=stabilityai/stable-diffusion-xl-base-1.0", "base.dtype=bf16", "meta.attacker.steps=3")


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder that describes a tiny UNet at 16x16 latents, and nothing else."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_unet("sdxl").save_config(folder / "unet")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": 16}))
    TINY[0] = f"base.model={folder}"
    return folder


TINY = [""]


def recipe(*changes: str) -> Recipe:
    """On the tiny base unless told otherwise; checkpointed, one row, one attacker step in the adapter, few terms."""
    lean = ["evaluate=null", "attacks=null", "data.keep_only_shown=false", "data.sampler.batch_size=1"]
    paired = ["arms=null", "train.batch_size=1", "train.checkpointing=true", "meta.attacker.space=adapter"]
    quick = ["meta.attacker.required_drop=0", "meta.keep_unconditional=0"]
    return load_recipe("shapes/demo", [*lean, *paired, *quick, TINY[0], *changes])


CASES = {
    "lora": ("adapter.kind=lora",),
    "three rows": ("adapter.kind=lora", "train.batch_size=3", "meta=null"),
    "states on the CPU": ("train.memory.states=cpu",),
    "whole space": ("meta.attacker.space=full", "meta.attacker.rule=adamw"),
    "moments on the CPU": ("adapter.kind=lora", "train.memory.optimizer_on=cpu"),
    "quantised": ("adapter.kind=lora", "base.quantize=nf4"),
}

QUICK = ("lora", "states on the CPU", "quantised")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_a_plan_agrees_with_live_bytes_of_real_tensors(case: str) -> None:
    made = recipe(*CASES[case])
    predicted, measured = plan(made), plan(made, "cpu")
    assert measured.always == predicted.always
    assert predicted.host == pytest.approx(measured.host, rel=0.1)
    for name, size in predicted.transient.items():
        assert size == pytest.approx(measured.transient[name], rel=0.1), name
        assert predicted.forwards.get(name, 0) == pytest.approx(measured.forwards.get(name, 0), rel=0.01), name


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.25, 0.5])
def test_a_plan_agrees_at_larger_sizes_too(width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("sd1")
    channels = tuple(int(width * count) for count in config["block_out_channels"])
    monkeypatch.setattr(planning_module, "load_config", lambda _: config | {"block_out_channels": channels})
    made = recipe("base.model=sd1", "adapter.kind=lora", "adapter.subset=attn[12]", "adapter.rank=8")
    predicted, measured = plan(made, size=256), plan(made, "cpu", size=256)
    assert predicted.peak == pytest.approx(measured.peak, rel=0.1)
    for name, size in predicted.transient.items():
        assert size == pytest.approx(measured.transient[name], rel=0.1), name


@pytest.mark.parametrize("rule", ["sgd", pytest.param("momentum", marks=pytest.mark.slow), "adamw"])
def test_further_attacker_steps_are_added_up_as_they_are_taken(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps gone through, against one and its multiples."""
    made = recipe(f"meta.attacker.rule={rule}", "meta.attacker.steps=3")
    found = plan(made)
    monkeypatch.setattr(planning_module, "_rehearsed", lambda recipe: recipe)
    monkeypatch.setattr(planning_module, "_further_steps", lambda *_: (0, {}))
    whole = plan(made)
    for name, size in found.transient.items():
        assert size == pytest.approx(whole.transient[name], rel=0.1), name
    assert found.forwards["product"] == pytest.approx(whole.forwards["product"], rel=0.01)


@pytest.mark.parametrize("method", ["uce", "rece", "none"])
def test_a_method_that_trains_nothing_has_a_plan(method: str) -> None:
    found = plan(recipe(f"method={{name: {method}}}", "meta=null"))
    assert list(found.transient) == ["cache"] and found.peak > 0


def test_a_method_without_meta_has_a_plan() -> None:
    found = plan(recipe("method={name: sdd}", "meta=null", "adapter.kind=lora"))
    assert {"method", "optimizer"} <= set(found.transient) and "product" not in found.transient


def test_the_table_says_whether_the_card_fits_and_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("train.batch_size=4")
    found = plan(made)
    assert "24 GiB card: fits" in as_table(found, card_bytes("24GB"))
    wanted = {"train.batch_size=1", "adapter.kind=lora"}
    all_of_them = dict(advice_module._turns(made))
    assert wanted | {"train.memory.states=cpu", "train.memory.optimizer=adam8bit"} <= set(all_of_them)
    monkeypatch.setattr(advice_module, "_turns", lambda _: [(o, p) for o, p in all_of_them.items() if o in wanted])
    knobs = advice(made)
    assert "train.batch_size=1" in {knob.override for knob in knobs} <= wanted  # what saves nothing is left out
    assert [knob.found.peak for knob in knobs] == sorted(knob.found.peak for knob in knobs)
    best = knobs[0]
    assert plan(turned(made, best.override)).peak == best.found.peak < found.peak
    text = as_table(found, card_bytes("0.01GB"), knobs)
    assert "0.01 GiB card: does not fit" in text and f"{best.override} " in text
    with pytest.raises(RecipeError, match="write it like 24GB"):
        card_bytes("big")


def test_a_plan_is_kept_as_json(tmp_path: Path) -> None:
    found = plan(recipe("meta=null"))
    save(found, tmp_path / "plan.json")
    assert f'"peak": {found.peak}' in (tmp_path / "plan.json").read_text()


def test_smaller_pictures_take_less() -> None:
    made = recipe("meta=null")
    assert plan(made, size=64).transient["method"] < plan(made, size=128).transient["method"]


def test_a_base_that_is_not_here_is_refused() -> None:
    with pytest.raises(Exception, match="no UNet configuration of 'nobody/nothing'"):
        load_config("nobody/nothing")


def test_weights_that_cannot_move_are_refused() -> None:
    with pytest.raises(RecipeError, match="whose weights cannot move"):
        plan(recipe("base.quantize=nf4", "adapter.kind=dense"))


@pytest.mark.parametrize(("name", "kind"), [("sd1", "sd"), ("sdxl", "sdxl")])
def test_the_encoders_sizes(name: str, kind: str) -> None:
    parts = [part for key, part in real_models(kind).items() if key != "unet"]
    assert PARAMETERS[name] == sum(p.numel() for part in parts for p in part.parameters())


BARS = {
    "lora": (8.0, 1.9, ("adapter.kind=lora", r"adapter.subset=attn[12]\.", "adapter.rank=16")),
    "nf4": (5.0, 1.9, ("adapter.kind=lora", r"adapter.subset=attn[12]\.", "adapter.rank=16", "base.quantize=nf4")),
    "kv": (12.0, 1.9, ("adapter.subset=cross_attention_kv", "train.memory.states=cpu")),
    "non": (22.0, 99.0, ("adapter.subset=non_cross_attention", "train.memory.states=cpu")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BARS)
def test_sdxl_at_1024_keeps_the_bars(case: str) -> None:
    whole, product, changes = BARS[case]
    found = plan(recipe(*SDXL, *changes))
    assert found.transient["product"] <= product * GIB
    assert found.peak <= whole * GIB
