"""Everything that can be wrong with a recipe is found before work starts; what needs no model, before one is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from adapter_mu.attack.check import check_attack, check_attack_fits
from adapter_mu.data.folders import check_folder
from adapter_mu.data.prompts import expand
from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.quality import check_quality
from adapter_mu.meta import SGD, meta_gradient
from adapter_mu.methods import StartMethod, draws, new_method, trains
from adapter_mu.models import LoadedModel
from adapter_mu.models.load import HUB_ID, locate
from adapter_mu.params import describe, make_adapter
from adapter_mu.recipe import Base, Evaluate, Meta, Prompts, Recipe, every_prompts
from adapter_mu.stages.products import check_memory
from adapter_mu.stages.prompting import check_prompt_attacks
from adapter_mu.stages.setting import BASE, BEFORE, load_base

SHARED = ("base", "concept", "data", "evaluate")  # every arm meets the same
NAME = re.compile(r"\w[\w.-]*")


def validate(recipe: Recipe) -> dict[str, str]:
    """Load the base and check everything, for every arm; what each arm will train, in words.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    check_recipe(recipe)
    _is_here(recipe.base)
    return check_fit(recipe, load_base(recipe))


def _is_here(base: Base) -> None:
    """ModelError when the base would have to be downloaded first, which checking a recipe must not do."""
    if Path(base.model).expanduser().exists() or not HUB_ID.fullmatch(base.model):
        return
    try:
        locate(base.model, base.revision, base.variant, local_files_only=True)
    except ModelError:
        raise ModelError(
            f"all that needs no model is right, but the base '{base.model}' is not on this machine: `adapter-mu run` "
            f"downloads it, or `hf download {base.model}` does so now."
        ) from None


def arms(recipe: Recipe) -> dict[str, Recipe]:
    """Every arm as a recipe; a recipe without arms is its own only arm."""
    own = "meta-unlearned" if recipe.meta else "unlearned"
    return {name: recipe.arm(name) for name in recipe.arms} or {own: recipe}


def check_recipe(recipe: Recipe) -> None:
    """What can be seen without a model; RecipeError in one sentence."""
    every = arms(recipe)
    check_names("arm", every, taken=BASE)
    for spec in (recipe.data.forget, recipe.data.related, recipe.data.unrelated):
        expand(spec)
    check_scoring(recipe)
    for name, arm in every.items():
        if changed := [part for part in SHARED if getattr(arm, part) != getattr(recipe, part)]:
            raise RecipeError(f"Arm '{name}' changes `{changed[0]}`, which all arms share; make it its own recipe.")
        check_scoring(arm)
        _check_training(name, arm)


def _check_training(name: str, arm: Recipe) -> None:
    """The method, its options, its steps and the meta part; RecipeError in one sentence."""
    method = new_method(arm.method.name, arm.method.options)
    check_memory(arm)
    if draws(method) and arm.base.quantize != "none":
        raise RecipeError(f"Method {arm.method.name} draws with weights of its own; set base.quantize to none.")
    if arm.train.steps == 0 and trains(arm.method.name, arm.meta):
        raise RecipeError(f"Arm '{name}' trains, but `train.steps` is missing; say how many steps.")
    if arm.meta:
        _check_meta(arm.meta)


def check_names(what: str, names: Iterable[str], taken: str | None = None) -> None:
    """RecipeError for a name that cannot be part of a file's name, or that results.json uses for something else."""
    for name in names:
        if not NAME.fullmatch(name) or name == taken:
            but = f", and not '{taken}'" if taken else ""
            raise RecipeError(f"'{name}' cannot name this {what}; use letters, digits, '-', '_' and '.'{but}.")


def check_scoring(recipe: Recipe) -> None:
    """The attacks, and the concepts that the detector will be asked about; RecipeError in one sentence."""
    check_names("attack", recipe.attacks, taken=BEFORE)
    drawn = []
    for name, attack in recipe.finetunes.items():
        check_attack(name, attack)
        drawn += list(every_prompts(attack))
    for spec in [*drawn, *recipe.attack_data.values()]:
        expand(spec)
    judged = [recipe.data.forget, recipe.data.related, recipe.data.unrelated]
    judged = [*judged, *drawn] if recipe.data.keep_only_shown else []
    if recipe.evaluate:
        _check_detectors(recipe.evaluate, {recipe.concept} | _shown([*judged, recipe.evaluate.concept]))
    elif recipe.attacks or judged:
        raise RecipeError("`attacks` and `data.keep_only_shown` need an `evaluate` part with a detector; add it.")


def _check_detectors(evaluate: Evaluate, asked: set[str]) -> None:
    """RecipeError when a detector does not know what it will be asked about; ModelError for what is not installed."""
    benign = _shown([evaluate.benign])
    new_detector(evaluate.detector).check(asked if evaluate.benign_detector else asked | benign)
    if evaluate.benign_detector:
        new_detector(evaluate.benign_detector).check(benign)
    check_quality(evaluate)


def _shown(specs: Iterable[Prompts]) -> set[str]:
    return {prompt.shows for spec in specs for prompt in expand(spec)}


def _check_meta(meta: Meta) -> None:
    """Let the mathematics itself refuse an order or a product that it does not have, on one number."""
    meta_gradient(
        lambda params, _: params["x"].square().sum(),
        lambda params: params["x"].sum(),
        {"x": torch.ones(1)},
        [],
        attacker=SGD(lr=1.0),
        order=meta.order,
        hvp=meta.hvp,
    )


def check_fit(recipe: Recipe, model: LoadedModel) -> dict[str, str]:
    """What each arm will train, in words; RecipeError when a subset or the detector does not fit the model."""
    check_pictures(recipe, model)
    for arm in arms(recipe).values():
        check_attacks_fit(arm, model)
    return {name: _check_arm(arm, model) for name, arm in arms(recipe).items()}


def check_attacks_fit(recipe: Recipe, model: LoadedModel) -> None:
    """RecipeError when the model has not what an attack is to train."""
    for label, attack in recipe.finetunes.items():
        check_attack_fits(label, attack, model)
    if recipe.evaluate:
        check_prompt_attacks(model, recipe.evaluate, recipe.prompt_attacks)


def check_pictures(recipe: Recipe, model: LoadedModel) -> None:
    """Own pictures are large enough; show the detector one blank picture of the model's size, for it to refuse."""
    side = model.latent_size * model.pipeline.vae_scale_factor
    for spec in every_prompts(recipe):
        check_folder(spec, side)
    if recipe.evaluate:
        blank = torch.zeros(1, 3, side, side)
        new_detector(recipe.evaluate.detector).found(blank, [recipe.concept])
        if recipe.evaluate.benign_detector:
            new_detector(recipe.evaluate.benign_detector).found(blank, [expand(recipe.evaluate.benign)[0].shows])


def _check_arm(recipe: Recipe, model: LoadedModel) -> str:
    adapter, method = recipe.adapter, new_method(recipe.method.name, recipe.method.options)
    first = ""
    if isinstance(method, StartMethod):
        getattr(method, "check", lambda _: None)(model)
        first = f" on top of {recipe.method.name}"
    if not trains(recipe.method.name, recipe.meta):
        return f"method {recipe.method.name}, nothing to train"
    what = describe(model.unet, adapter.subset)
    if adapter.kind == "lora":  # small, and picky about layers; a dense one takes every subset
        make_adapter(model.unet, adapter.kind, adapter.subset, rank=adapter.rank, alpha=adapter.alpha)
    return what + first
