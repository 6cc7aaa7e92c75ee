"""Train an arm, save its adapter, merge it."""

from __future__ import annotations

from pathlib import Path

from adapter_mu.data.cache import content_key
from adapter_mu.data.prompts import expand
from adapter_mu.export.merge import merge, save_folder
from adapter_mu.methods import GradientMethod, new_method
from adapter_mu.models import LoadedModel, load_model, prepare_for_first_order
from adapter_mu.params import Adapter, describe, load_adapter, make_adapter, save_adapter
from adapter_mu.recipe import Recipe
from adapter_mu.stages.products import beside_the_base, prepare_products
from adapter_mu.stages.setting import Run
from adapter_mu.train import Trainer


def train_arm(run: Run, name: str, recipe: Recipe) -> LoadedModel:
    """Train the arm (or resume, or load what is done), save its adapter and its merged model; returns that."""
    folder = run.arm_folder(name)
    saved, merged = folder / "adapter.safetensors", folder / "merged"
    if saved.is_file():
        run.announce(f"{name}: training, done before")
    else:
        trains = describe(run.model.unet, recipe.adapter.subset)
        run.announce(f"{name}: training ({recipe.train.steps} steps; {trains})")
        _train(run, name, recipe, saved)
    if not merged.is_dir():
        save_folder(merge(run.model, load_adapter(run.model.unet, saved)), merged)
    return load_model(str(merged), dtype=run.model.dtype, device=run.model.device)


def _train(run: Run, name: str, recipe: Recipe, saved: Path) -> None:
    """Train and save the adapter; the training state is needed no more after that."""
    method = new_method(recipe.method.name, recipe.method.options)
    method.prepare(run.model, run.base_hash, expand(recipe.data.forget), run.folder / "cache")
    a = recipe.adapter
    adapter = make_adapter(run.model.unet, a.kind, a.subset, rank=a.rank, alpha=a.alpha, seed=recipe.seed)
    state = saved.with_name("train.safetensors")
    _optimize(run, recipe, method, adapter, state, run.folder / f"training_{name}.jsonl")
    facts = {
        "base": run.model.name,
        "base_hash": run.base_hash,
        "base_dtype": recipe.base.dtype,
        "recipe": recipe.name,
        "recipe_hash": content_key(**recipe.model_dump(mode="json", exclude={"workers"})),
        "concept": recipe.concept,
        "method": recipe.method.name,
    }
    save_adapter(adapter, saved, facts)
    state.unlink(missing_ok=True)


def _optimize(run: Run, recipe: Recipe, method: GradientMethod, adapter: Adapter, state: Path, log: Path) -> None:
    """The outer loop, with the base's UNet set up for it and put back afterwards."""
    unet, checkpointing = run.model.unet, recipe.train.checkpointing
    paired = False
    exact = recipe.meta is not None and recipe.meta.order != "first_order" and recipe.meta.attacker.steps > 0
    if exact:
        paired = prepare_products(unet, recipe)
    else:
        prepare_for_first_order(unet, checkpointing=checkpointing)
    unet.train(checkpointing)
    if paired:
        adapter = beside_the_base(unet, recipe, adapter)
    try:
        Trainer(run.model, method, adapter, run.sets, recipe, state_file=state, log_file=log).run()
    finally:
        unet.eval()
        prepare_for_first_order(unet)
