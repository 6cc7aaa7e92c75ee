"""Whole verbs: everything a recipe names, or one stage on a model that was made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from adapter_mu.data.cache import write_text
from adapter_mu.data.sampling import decode, sample_latents
from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.evaluate.statistics import Row
from adapter_mu.models import load_model
from adapter_mu.recipe import Attack, Evaluate, Recipe
from adapter_mu.report import headline_table, load_results, load_rows, render_text
from adapter_mu.report.page import build_report
from adapter_mu.stages import (
    BASE,
    BEFORE,
    DTYPES,
    Run,
    Scores,
    arms,
    attack_arm,
    check_fit,
    check_names,
    check_pictures,
    check_recipe,
    check_scoring,
    claim,
    holds,
    load_base,
    numbered,
    open_run,
    pick_device,
    say,
    share_of_threads,
    side_by_side,
    train_arm,
)


def everything(recipe: Recipe, folder: Path) -> str:
    """Train, merge, attack, score and report every arm; returns the table and where the results lie.

    Raises:
        UserError: something in the recipe is wrong; nothing was trained.
    """
    if holds(folder, recipe) and _finished(recipe, folder):
        say("everything was done before")
    else:
        check_recipe(recipe)
        model = load_base(recipe)
        check_fit(recipe, model)
        claim(recipe, folder)
        with share_of_threads(recipe.workers):
            _work(open_run(recipe, folder, model))
    said = table(folder) if recipe.evaluate else "nothing was scored: the recipe has no `evaluate` part"
    return "\n".join([said, *(f"{arm}: {folder / 'arms' / arm}/adapter.safetensors, merged/" for arm in arms(recipe))])


def _work(run: Run) -> None:
    """The stages in order; those that are done are passed over."""
    recipe, every, evaluate = run.recipe, arms(run.recipe), run.recipe.evaluate
    parallel = recipe.workers > 1 and len(every) > 1
    per_arm = [1 + (1 + len(arm.attacks) if evaluate else 0) for arm in every.values()]
    run.announce = numbered(1 + (2 if evaluate else 0) + (1 if parallel else sum(per_arm)))
    run.draw_sets()
    if evaluate:
        attack_arm(run, BASE, run.model, evaluate, {})
    if parallel:
        run.announce(f"{len(every)} arms, {min(recipe.workers, len(every))} at a time")
        side_by_side(_work_on_arm, recipe, run.folder)
    else:
        for name, arm in every.items():
            _train_and_score(run, name, arm)
    if evaluate:
        _report(run, evaluate, [row for name in (BASE, *every) for row in Scores(run, name, evaluate).rows])


def _train_and_score(run: Run, name: str, arm: Recipe) -> None:
    merged = train_arm(run, name, arm)
    if run.recipe.evaluate:
        attack_arm(run, name, merged, run.recipe.evaluate, arm.attacks)


def _work_on_arm(recipe: Recipe, folder: Path, name: str) -> None:
    """One arm in a process of its own."""
    _train_and_score(open_run(recipe, folder), name, arms(recipe)[name])


def _finished(recipe: Recipe, folder: Path) -> bool:
    """Whether every file and every row that a run of the recipe leaves is there."""
    every = arms(recipe)
    made = [folder / "arms" / name / part for name in every for part in ("adapter.safetensors", "merged")]
    if recipe.evaluate is None:
        return all(path.exists() for path in made)
    made += [folder / "results.json", folder / "report.html"]
    if not all(path.exists() for path in made):
        return False
    cells = {(name, BEFORE, 0) for name in (BASE, *every)}
    cells |= {(name, label, s) for name, arm in every.items() for label, a in arm.attacks.items() for s in a.steps}
    measured = {(row.arm, row.attack, row.step, row.guidance) for row in load_rows(folder)}
    return {(*cell, guidance) for cell in cells for guidance in recipe.evaluate.guidance} <= measured


def attack_model(
    source: str, config: str | None, recipe: Recipe, only: Sequence[str] | None, name: str, folder: Path
) -> str:
    """Score a model before and along the recipe's attacks (`only` those named); returns the table.

    Other models that were scored with the same recipe in the same folder stay in the table.

    Raises:
        UserError: unknown attack, no `evaluate` part, or a model that cannot be loaded.
    """
    chosen, evaluate = _chosen(recipe, only), recipe.evaluate
    check_names("model", [name])
    if evaluate is None:
        raise RecipeError(f"Recipe {recipe.name} has no `evaluate` part, so nothing can be scored; add it.")
    check_scoring(recipe)
    holds(folder, recipe)
    model = load_model(source, config=config, dtype=DTYPES[recipe.base.dtype], device=pick_device(recipe.base.device))
    check_pictures(recipe, model)
    base = load_base(recipe) if chosen else model  # the attacks' pictures are drawn by the base
    if base.kind != model.kind:
        raise ModelError(f"'{source}' is {model.kind}, but the recipe's base is {base.kind}; choose another recipe.")
    claim(recipe, folder)
    run = open_run(recipe, folder, base)
    run.announce = numbered(2 + len(chosen))
    rows = attack_arm(run, name, model, evaluate, chosen)
    others = load_rows(folder) if (folder / "results.json").is_file() else []
    _report(run, evaluate, [*(row for row in others if row.arm != name), *rows])
    return table(folder)


def _chosen(recipe: Recipe, only: Sequence[str] | None) -> dict[str, Attack]:
    if unknown := sorted(set(only or ()) - recipe.attacks.keys()):
        raise RecipeError(f"The recipe has no attack '{unknown[0]}'; it has {', '.join(recipe.attacks) or 'none'}.")
    return {label: attack for label, attack in recipe.attacks.items() if only is None or label in only}


def _report(run: Run, evaluate: Evaluate, rows: list[Row]) -> None:
    """Write results.json and report.html."""
    run.announce("the report")
    recipe = run.recipe
    facts = {
        "concept": recipe.concept,
        "title": f"Unlearning '{recipe.concept}' from {Path(recipe.base.model).name}",
        "usual_guidance": evaluate.usual_guidance,
        "caption": recipe.description,
    }
    results = {"rows": [asdict(row) for row in rows], "meta": facts}
    write_text(run.folder / "results.json", json.dumps(results, indent=1))
    build_report(run.folder)


def table(folder: Path) -> str:
    """The table of a run's folder and where its report lies; UserError when it has no results."""
    results = load_results(folder)
    return f"{render_text(headline_table(results.rows), results.concept)}\n\nreport: {folder / 'report.html'}"


def draw(source: str, config: str | None, prompts: list[str], seed: int, steps: int, guidance: float) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], one a prompt, seeds counting up from `seed`."""
    model = load_model(source, config=config, device=pick_device())
    seeds = [seed + i for i in range(len(prompts))]
    latents = sample_latents(model, prompts, seeds, steps=steps, guidance=guidance, batch_size=4)
    return decode(model, latents, 4)
