"""Train an arm on what it starts from, save its adapter, merge it."""

from __future__ import annotations

from pathlib import Path

import torch

from adapter_mu.data.prompts import expand
from adapter_mu.export.merge import merge, save_folder
from adapter_mu.methods import GradientMethod, Method, RememberingMethod, StartMethod, draws, new_method, trains
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.params import Adapter, describe, load_adapter, make_adapter, save_adapter
from adapter_mu.recipe import Recipe
from adapter_mu.simulate import Sets
from adapter_mu.stages.products import set_up, states_device, training_device
from adapter_mu.stages.setting import Run
from adapter_mu.stages.starting import ADAPTER, Start, starting_model
from adapter_mu.train import Trainer

STATE = "train.safetensors"


def train_arm(run: Run, name: str, recipe: Recipe) -> LoadedModel:
    """Make an arm (or resume, or load what is done); returns its merged model.

    Its folder then holds `edit.safetensors` (of a closed-form method), `adapter.safetensors` (of an arm that trains)
    and `merged/`: base + edit + adapter.
    """
    folder = run.arm_folder(name)
    saved, merged = folder / ADAPTER, folder / "merged"
    done = saved.is_file() or merged.is_dir()
    run.announce(f"{name}: " + ("training, done before" if done else _what(run, recipe)))
    if not merged.is_dir():
        start = starting_model(run, name, recipe)
        made = start.model
        if trains(recipe.method.name, recipe.meta):
            if not saved.is_file():
                _train(run, start, name, recipe, saved)
            saved.with_name(STATE).unlink(missing_ok=True)  # needed no more
            made = merge(start.model, load_adapter(start.model.unet, saved))
        save_folder(made, merged)
    return load_model(str(merged), dtype=run.model.dtype, device=training_device(recipe, run.model))


def _what(run: Run, recipe: Recipe) -> str:
    """The work in words."""
    method = recipe.method.name
    if not trains(method, recipe.meta):
        return f"method {method}, nothing to train"
    what = describe(run.model.unet, recipe.adapter.subset)
    first = f" on top of {method}" if not trains(method, None) else ""
    return f"training{first} ({recipe.train.steps} steps; {what})"


def _train(run: Run, start: Start, name: str, recipe: Recipe, saved: Path) -> None:
    """Train and save the adapter."""
    a, model = recipe.adapter, start.model
    method = _prepared(run, new_method(recipe.method.name, recipe.method.options), recipe)
    place = states_device(recipe, model)
    adapter = make_adapter(model.unet, a.kind, a.subset, rank=a.rank, alpha=a.alpha, seed=recipe.seed, device=place)
    if isinstance(method, RememberingMethod):
        method.follow(adapter)
    state = saved.with_name(STATE)
    ready = (run.quantized or model) if model is run.model else model
    _optimize(ready, _sets(run, model), recipe, method, adapter, state, run.folder / f"training_{name}.jsonl")
    if isinstance(method, RememberingMethod):
        _take(adapter, method)
    save_adapter(adapter, saved, start.facts)


def _prepared(run: Run, method: Method, recipe: Recipe) -> GradientMethod | None:
    """The unlearning loss, ready; None for an arm that starts unlearned."""
    if isinstance(method, StartMethod):
        return None
    with run.at_work() as (model, base_hash):
        method.prepare(model, base_hash, expand(recipe.data.forget), run.folder / "cache")
    return method


def _sets(run: Run, model: LoadedModel) -> Sets:
    """The base's pictures, their captions encoded by the text encoder of the model that is trained."""
    sets = run.sets
    if model is run.model:
        return sets
    return Sets(*(part.encoded_by(model) for part in (sets.forget, sets.related, sets.unrelated)))


@torch.no_grad()
def _take(adapter: Adapter, method: RememberingMethod) -> None:
    """What the method wants saved in theta's place."""
    theta = adapter.parameters()
    for name, tensor in (method.result() or {}).items():
        theta[name].copy_(tensor)


def _optimize(
    model: LoadedModel,
    sets: Sets,
    recipe: Recipe,
    method: GradientMethod | None,
    adapter: Adapter,
    state: Path,
    log: Path,
) -> None:
    """The outer loop, with the model set up for it and put back afterwards."""
    with set_up(model, recipe, adapter, draws=draws(method)) as (ready, own):
        Trainer(ready, method, own, sets, recipe, state_file=state, log_file=log).run()
