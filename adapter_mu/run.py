"""Whole verbs: everything a recipe names, or one stage on a model that was made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from adapter_mu.data.cache import write_text
from adapter_mu.data.sampling import decode, sample_latents
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.evaluate.statistics import Row
from adapter_mu.export.merge import merge, save_folder
from adapter_mu.models import load_model
from adapter_mu.params import load_adapter
from adapter_mu.recipe import Evaluate, Recipe
from adapter_mu.report import headline_table, render_text
from adapter_mu.report.page import build_report
from adapter_mu.stages import BASE, DTYPES, Run, arms, attack_arm, claim, open_run, say, train_arm, validate


def everything(recipe: Recipe, folder: Path) -> str:
    """Train, merge, attack, score and report every arm; returns the table and where the results lie.

    Raises:
        UserError: something in the recipe is wrong; nothing was trained.
    """
    trains = validate(recipe)
    claim(recipe, folder)
    run = open_run(recipe, folder)
    rows: list[Row] = []
    if recipe.evaluate:
        rows += attack_arm(run, BASE, run.model, recipe.evaluate, {})
    for name, arm in arms(recipe).items():
        say(f"{name}: trains {trains[name]}")
        merged = train_arm(run, name, arm)
        if recipe.evaluate:
            rows += attack_arm(run, name, merged, recipe.evaluate, arm.attacks)
    made = [f"{name}: {run.arm_folder(name)}/adapter.safetensors, merged/" for name in arms(recipe)]
    return "\n".join([_finish(run, recipe.evaluate, rows), *made])


def attack_model(
    source: str, config: str | None, recipe: Recipe, only: Sequence[str] | None, name: str, folder: Path
) -> str:
    """Score a model before and along the recipe's attacks (`only` those named); returns the table.

    Raises:
        UserError: unknown attack, no `evaluate` part, or a model that cannot be loaded.
    """
    unknown = sorted(set(only or ()) - recipe.attacks.keys())
    if unknown:
        raise RecipeError(f"The recipe has no attack '{unknown[0]}'; it has {', '.join(recipe.attacks) or 'none'}.")
    if recipe.evaluate is None:
        raise RecipeError(f"Recipe {recipe.name} has no `evaluate` part, so nothing can be scored; add it.")
    chosen = {label: a for label, a in recipe.attacks.items() if only is None or label in only}
    validate(recipe)
    model = load_model(source, config=config, dtype=DTYPES[recipe.base.dtype])
    claim(recipe, folder)
    run = open_run(recipe, folder)
    return _finish(run, recipe.evaluate, attack_arm(run, name, model, recipe.evaluate, chosen))


def _finish(run: Run, evaluate: Evaluate | None, rows: list[Row]) -> str:
    """Write results.json and report.html; the table as text."""
    if evaluate is None:
        return "nothing was scored: the recipe has no `evaluate` part"
    facts = {
        "concept": run.recipe.concept,
        "title": f"Unlearning '{run.recipe.concept}' from {run.model.name}",
        "usual_guidance": evaluate.usual_guidance,
        "caption": run.recipe.description,
    }
    results = {"rows": [asdict(row) for row in rows], "meta": facts}
    write_text(run.folder / "results.json", json.dumps(results, indent=1))
    page = build_report(run.folder)
    return f"{render_text(headline_table(rows), run.recipe.concept)}\n\nreport: {page}"


def merge_adapter(adapter: Path, base: str, config: str | None, out: Path, dtype: str) -> Path:
    """Merge a saved adapter into its base in fp32, cast once, write a diffusers folder.

    Raises:
        UserError: wrong base, damaged adapter, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another output or delete it.")
    model = load_model(base, config=config)
    merged = merge(model, load_adapter(model.unet, adapter))
    merged.pipeline.to(DTYPES[dtype])
    return save_folder(merged, out)


def draw(source: str, config: str | None, prompts: list[str], seed: int, steps: int, guidance: float) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], one a prompt, seeds counting up from `seed`."""
    model = load_model(source, config=config)
    seeds = [seed + i for i in range(len(prompts))]
    latents = sample_latents(model, prompts, seeds, steps=steps, guidance=guidance, batch_size=4)
    return decode(model, latents, 4)
