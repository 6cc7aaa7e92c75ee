"""Whole verbs: everything a recipe names, or one stage on a model that was made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from adapter_mu.data.cache import write_text
from adapter_mu.data.sampling import decode, sample_latents
from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.evaluate.comparisons import summary
from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.folder import as_text, judge_folder, save_judged
from adapter_mu.evaluate.prompt_success import in_words
from adapter_mu.evaluate.scores import detector_facts
from adapter_mu.evaluate.statistics import Row
from adapter_mu.methods import trains
from adapter_mu.models import LoadedModel, load_model, on_device
from adapter_mu.recipe import AnyAttack, Asked, Evaluate, Recipe
from adapter_mu.report import headline_table, load_results, load_rows, render_text
from adapter_mu.report.page import build_report
from adapter_mu.report.rows import UNLEARNED, worst
from adapter_mu.stages import (
    ADAPTER,
    BASE,
    BEFORE,
    DTYPES,
    Run,
    Scores,
    Victims,
    arms,
    attack_arm,
    check_attacks_fit,
    check_fit,
    check_names,
    check_pictures,
    check_recipe,
    check_scoring,
    claim,
    command,
    environment,
    holds,
    load_base,
    made,
    numbered,
    open_run,
    pick_device,
    prompt_success_rates,
    provenance,
    quality_done,
    quality_items,
    quality_of_arm,
    say,
    searches_done,
    share_of_threads,
    side_by_side,
    train_arm,
    training_device,
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
    return "\n".join(
        [said, *(f"{arm}: {folder / 'arms' / arm}/{', '.join(made(folder, arm))}" for arm in arms(recipe))]
    )


def _work(run: Run) -> None:
    """The stages in order; those that are done are passed over."""
    recipe, every, evaluate = run.recipe, arms(run.recipe), run.recipe.evaluate
    parallel = recipe.workers > 1 and len(every) > 1
    per_arm = [1 + (_stages(evaluate, arm.attacks) if evaluate else 0) for arm in every.values()]
    own = 1 + _stages(evaluate, {}) if evaluate else 0
    run.announce = numbered(1 + own + (1 if parallel else sum(per_arm)))
    run.draw_sets()
    if evaluate:
        with on_device(run.model, training_device(recipe, run.model)):
            _score(run, BASE, run.model, evaluate, {})
    if parallel:
        run.announce(f"{len(every)} arms, {min(recipe.workers, len(every))} at a time")
        side_by_side(_work_on_arm, recipe, run.folder)
    else:
        for name, arm in every.items():
            _train_and_score(run, name, arm)
    if evaluate:
        _report(run, evaluate)


def _train_and_score(run: Run, name: str, arm: Recipe) -> None:
    merged = train_arm(run, name, arm)
    if run.recipe.evaluate:
        _score(run, name, merged, run.recipe.evaluate, arm.attacks)


def _score(run: Run, name: str, model: LoadedModel, evaluate: Evaluate, attacks: Mapping[str, AnyAttack]) -> None:
    """Quality before any attack, then scores before and along the attacks."""
    quality_of_arm(run, name, model)
    attack_arm(run, name, model, evaluate, attacks)


def _work_on_arm(recipe: Recipe, folder: Path, name: str) -> None:
    """One arm in a process of its own."""
    _train_and_score(open_run(recipe, folder), name, arms(recipe)[name])


def _finished(recipe: Recipe, folder: Path) -> bool:
    """Whether every file and every row that a run of the recipe leaves is there."""
    every = arms(recipe)
    left = [folder / "arms" / name / "merged" for name in every]
    left += [folder / "arms" / name / ADAPTER for name, arm in every.items() if trains(arm.method.name, arm.meta)]
    if recipe.evaluate is None:
        return all(path.exists() for path in left)
    left += [folder / "results.json", folder / "report.html"]
    if not all(path.exists() for path in left):
        return False
    cells = {(name, BEFORE, 0, 0) for name in (BASE, *every)}
    for name, arm in every.items():
        cells |= {
            (name, label, step, seed) for label, a in arm.finetunes.items() for step in a.steps for seed in a.seeds
        }
    measured = {(row.arm, row.attack, row.step, row.seed, row.guidance) for row in load_rows(folder)}
    if recipe.evaluate.quality and not all(quality_done(folder / "arms" / name) for name in (BASE, *every)):
        return False
    searched = all(searches_done(folder / "arms" / name, arm.prompt_attacks) for name, arm in every.items())
    return searched and {(*cell, guidance) for cell in cells for guidance in recipe.evaluate.guidance} <= measured


def attack_model(
    source: str,
    config: str | None,
    recipe: Recipe,
    attacks: Mapping[str, AnyAttack],
    name: str,
    folder: Path,
) -> str:
    """Score a model before and along `attacks`, which need not be the recipe's; returns the table.

    Other models that were scored with the same recipe in the same folder stay in the table.

    Raises:
        UserError: an attack that cannot be run, no `evaluate` part, or a model that cannot be loaded.
    """
    evaluate = recipe.evaluate
    check_names("model", [name])
    if evaluate is None:
        raise RecipeError(f"Recipe {recipe.name} has no `evaluate` part, so nothing can be scored; add it.")
    asked = recipe.model_copy(update={"attacks": dict(attacks)})
    check_scoring(asked)
    holds(folder, recipe)
    model = load_model(source, config=config, dtype=DTYPES[recipe.base.dtype], device=pick_device(recipe.base.device))
    check_pictures(asked, model)
    check_attacks_fit(asked, model)
    # The attacks' pictures are drawn by the base, and quality is measured against it.
    base = load_base(recipe) if attacks or evaluate.quality else model
    if base.kind != model.kind:
        raise ModelError(f"'{source}' is {model.kind}, but the recipe's base is {base.kind}; choose another recipe.")
    claim(recipe, folder)
    run = open_run(recipe, folder, base)
    run.announce = numbered(1 + _stages(evaluate, attacks))
    _score(run, name, model, evaluate, attacks)
    _report(run, evaluate)
    return table(folder)


def attack_victims(victims: Victims, config: str | None, asked: Asked) -> str:
    """Attack one model, or every arm of a run with its own settings of an attack; the table and the worst cases."""
    every = arms(victims.recipe)
    chosen = {name: asked.of(every.get(name, victims.recipe)) for name in victims.models}
    for name, source in victims.models.items():
        said = attack_model(source, config, victims.recipe, chosen[name], name, victims.folder)
    rows = load_rows(victims.folder)
    cases = (worst_case([r for r in rows if (r.arm == name and r.attack in chosen[name])]) for name in victims.models)
    return "\n".join([said, *filter(None, cases)])


def worst_case(rows: Sequence[Row]) -> str:
    """The headline of a model's attacks in words: the highest score, whichever attack, step, seed and guidance it took.

    Not the mean: an attacker picks what works. Empty for no rows.
    """
    if not rows:
        return ""
    row = worst(rows)
    where = f"{row.attack} after {row.step} steps, guidance {row.guidance:g}, seed {row.seed}"
    return f"worst case of {row.arm}: {row.score:.1f} ({row.low:.1f} to {row.high:.1f}), {where}"


def evaluate_victims(victims: Victims, config: str | None) -> str:
    """Score one model, or every arm of a run, without attacking it; returns the table."""
    for name, source in victims.models.items():
        said = attack_model(source, config, victims.recipe, {}, name, victims.folder)
    return said


def judge_pictures(folder: Path, choice: str | Mapping[str, Any], concept: str, out: Path | None) -> str:
    """What a detector finds in a folder of pictures, in words; scores.csv and scores.json go to `out`.

    Raises:
        UserError: no pictures, or a detector that is not here or does not know the concept.
    """
    detector = new_detector(choice)
    judged = judge_folder(folder, detector, concept)
    if out:
        facts = {"pictures": str(folder.resolve()), "environment": environment(), "command": command()}
        save_judged(judged, detector, facts, out)
    return as_text(judged, detector)


def _stages(evaluate: Evaluate, attacks: Mapping[str, AnyAttack]) -> int:
    """How many headers the scores and attacks of one model print."""
    return 1 + (evaluate.quality is not None) + sum(len(attack.seeds) for attack in attacks.values())


def _report(run: Run, evaluate: Evaluate) -> None:
    """Write results.json and report.html from the scores that the run's folder holds."""
    run.announce("the report")
    recipe, folder = run.recipe, run.folder
    facts = {
        "concept": recipe.concept,
        "title": f"Unlearning '{recipe.concept}' from {Path(recipe.base.model).name}",
        "usual_guidance": evaluate.usual_guidance,
        "caption": recipe.description,
    }
    names = _scored(run)
    rows = [row for name in names for row in Scores(run, name, evaluate).rows]
    results = {
        "rows": [asdict(row) for row in rows],
        "prompt_attacks": [item for name in names for item in prompt_success_rates(run.arm_folder(name))],
        "quality": [item for name in names for item in quality_items(run.arm_folder(name))],
        **summary(rows, reference=_plain_twin(recipe)),
        "meta": facts | detector_facts(evaluate) | provenance(recipe, folder),
    }
    write_text(folder / "results.json", json.dumps(results, indent=1))
    build_report(folder)


def _plain_twin(recipe: Recipe) -> str | None:
    """The arm that the others are compared with: the plain one, or else the first."""
    every = list(arms(recipe))
    return UNLEARNED if UNLEARNED in every else every[0]


def _scored(run: Run) -> list[str]:
    """The base and the arms that have scores: the recipe's in its order, then other models'."""
    there = sorted(file.parent.name for file in run.folder.glob("arms/*/scores.jsonl"))
    order = [BASE, *arms(run.recipe)]
    return sorted(there, key=lambda name: order.index(name) if name in order else len(order))


def table(folder: Path) -> str:
    """The table of a run's folder and where its report lies; UserError when it has no results."""
    results = load_results(folder)
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    by_prompts = "".join(f"\n{line}" for line in in_words(content.get("prompt_attacks", [])))
    said = render_text(headline_table(results.rows), results.concept)
    return f"{said}\n{by_prompts}\nreport: {folder / 'report.html'}"


def draw(source: str, config: str | None, prompts: list[str], seed: int, steps: int, guidance: float) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], one a prompt, seeds counting up from `seed`."""
    model = load_model(source, config=config, device=pick_device())
    seeds = [seed + i for i in range(len(prompts))]
    latents = sample_latents(model, prompts, seeds, steps=steps, guidance=guidance, batch_size=4)
    return decode(model, latents, 4)
