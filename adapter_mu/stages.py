"""The stages of a run in order, each resumable, each leaving files in the run's folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

from adapter_mu.attack.finetune import finetune
from adapter_mu.data.cache import content_key, fingerprint, write_text
from adapter_mu.data.prompts import expand
from adapter_mu.data.sets import Judge, generated_set
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.detectors import Detector, new_detector
from adapter_mu.evaluate.pictures import save_strip
from adapter_mu.evaluate.scores import score_row
from adapter_mu.evaluate.statistics import Row
from adapter_mu.export.merge import merge, save_folder
from adapter_mu.methods import new_method
from adapter_mu.models import (
    LoadedModel,
    check_twice_differentiable,
    load_model,
    prepare_for_first_order,
    prepare_for_meta,
)
from adapter_mu.params import describe, load_adapter, make_adapter, save_adapter
from adapter_mu.recipe import Attack, Evaluate, Recipe
from adapter_mu.simulate import Sets
from adapter_mu.train import Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BASE, BEFORE = "base", "none"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "adapter-mu")


def say(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def load_base(recipe: Recipe) -> LoadedModel:
    """The base model on the recipe's device."""
    base = recipe.base
    device = base.device if base.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(
        base.model,
        revision=base.revision,
        variant=base.variant,
        dtype=DTYPES[base.dtype],
        device=device,
        local_files_only=base.local_files_only or None,
        config=base.config,
    )


def validate(recipe: Recipe) -> dict[str, str]:
    """Everything that can be checked before work starts, for every arm; what each arm will train, in words.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    model = load_base(recipe)
    specs = [recipe.data.forget, recipe.data.related, recipe.data.unrelated]
    specs += [attack.data for attack in recipe.attacks.values()]
    if recipe.evaluate:
        specs += [recipe.evaluate.concept, recipe.evaluate.benign]
    shown = [prompt.shows for spec in specs for prompt in expand(spec)]
    if recipe.evaluate:
        new_detector(recipe.evaluate.detector).check(set(shown) | {recipe.concept})
    elif recipe.attacks or recipe.data.keep_only_shown:
        raise RecipeError(
            "`attacks` and `data.keep_only_shown` need an `evaluate` part that names the detector; add it."
        )
    for attack in recipe.attacks.values():
        if not attack.steps or min(attack.steps) < 1:
            raise RecipeError("An attack's `steps` must be a list of step counts of at least 1.")
    trains = {}
    for name, arm in arms(recipe).items():
        new_method(arm.method.name, arm.method.options)
        trains[name] = describe(model.unet, arm.adapter.subset)
    return trains


def arms(recipe: Recipe) -> dict[str, Recipe]:
    """Every arm as a recipe; a recipe without arms is its own only arm."""
    own = "meta-unlearned" if recipe.meta else "unlearned"
    return {name: recipe.arm(name) for name in recipe.arms} or {own: recipe}


@dataclass
class Run:
    """A run's folder and what all its arms share."""

    recipe: Recipe
    folder: Path
    model: LoadedModel
    base_hash: str
    sets: Sets
    detector: Detector | None

    @property
    def judge(self) -> Judge | None:
        """Tells which generated pictures show their concept, when the recipe asks for that."""
        return self.detector.found if self.detector and self.recipe.data.keep_only_shown else None

    def arm_folder(self, arm: str) -> Path:
        """Where the arm's adapter, log, merged model and scores lie."""
        return self.folder / "arms" / arm


def claim(recipe: Recipe, folder: Path) -> None:
    """Record the recipe and the environment in the folder; RecipeError when another recipe's run lies there."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    recorded = folder / "recipe.yaml"
    if recorded.is_file() and recorded.read_text(encoding="utf-8") != text:
        raise RecipeError(f"{folder} holds a run of another recipe; choose another --out or delete that folder.")
    write_text(recorded, text)
    write_text(folder / "environment.json", json.dumps(environment(), indent=2))


def open_run(recipe: Recipe, folder: Path) -> Run:
    """Load the base and load or generate what the arms share."""
    torch.set_flush_denormal(True)
    model = load_base(recipe)
    detector = new_detector(recipe.evaluate.detector) if recipe.evaluate else None
    base_hash, data = fingerprint(model.unet), recipe.data
    judge = detector.found if detector and data.keep_only_shown else None
    say(f"sets drawn by {model.name}")
    sets = Sets(
        *(
            generated_set(model, base_hash, spec, data.sampler, folder / "cache", judge)
            for spec in (data.forget, data.related, data.unrelated)
        )
    )
    return Run(recipe, folder, model, base_hash, sets, detector)


def environment() -> dict[str, str]:
    """What the numbers depend on besides the recipe."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {"python": platform.python_version(), "platform": platform.platform(), "device": device} | versions


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def train_arm(run: Run, name: str, recipe: Recipe) -> LoadedModel:
    """Train the arm (or resume, or load what is done), save its adapter and its merged model; returns that."""
    folder = run.arm_folder(name)
    saved, merged = folder / "adapter.safetensors", folder / "merged"
    if not saved.is_file():
        _train(run, name, recipe, saved)
    adapter = load_adapter(run.model.unet, saved)
    if not merged.is_dir():
        save_folder(merge(run.model, adapter), merged)
    return load_model(str(merged), dtype=run.model.dtype, device=run.model.device)


def _train(run: Run, name: str, recipe: Recipe, saved: Path) -> None:
    method = new_method(recipe.method.name, recipe.method.options)
    method.prepare(run.model, run.base_hash, expand(recipe.data.forget), run.folder / "cache")
    a = recipe.adapter
    adapter = make_adapter(run.model.unet, a.kind, a.subset, rank=a.rank, alpha=a.alpha, seed=recipe.seed)
    exact = recipe.meta is not None and recipe.meta.order != "first_order" and recipe.meta.attacker.steps > 0
    if exact:
        prepare_for_meta(run.model.unet, checkpointing=recipe.train.checkpointing)
        check_twice_differentiable(run.model.unet)
    else:
        prepare_for_first_order(run.model.unet, checkpointing=recipe.train.checkpointing)
    run.model.unet.train(recipe.train.checkpointing)
    try:
        Trainer(
            run.model,
            method,
            adapter,
            run.sets,
            recipe,
            state_file=saved.with_name("train.safetensors"),
            log_file=run.folder / f"training_{name}.jsonl",
        ).run()
    finally:
        run.model.unet.eval()
        prepare_for_first_order(run.model.unet)
    key = content_key(**recipe.model_dump(mode="json"))
    facts = {"base": run.model.name, "base_hash": run.base_hash, "recipe": recipe.name, "recipe_hash": key}
    save_adapter(adapter, saved, facts | {"concept": recipe.concept, "method": recipe.method.name})


class Scores:
    """The rows of one arm, appended as they are measured, so that a resumed run measures only what is missing."""

    def __init__(self, run: Run, arm: str, evaluate: Evaluate) -> None:
        self.run, self.arm, self.evaluate = run, arm, evaluate
        self.file = run.arm_folder(arm) / "scores.jsonl"
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        self.rows = [Row(**json.loads(line)) for line in lines if line.endswith("}")]

    def has(self, attack: str, step: int) -> bool:
        """Whether the cell is measured at every guidance scale."""
        return {r.guidance for r in self.rows if (r.attack, r.step) == (attack, step)} >= set(self.evaluate.guidance)

    def measure(self, model: LoadedModel, attack: str, step: int) -> None:
        """Measure the cell at every guidance scale that is missing and keep a strip of its pictures."""
        assert self.run.detector is not None
        done = {r.guidance for r in self.rows if (r.attack, r.step) == (attack, step)}
        for guidance in self.evaluate.guidance:
            if guidance in done:
                continue
            row, concept, benign = score_row(
                model, self.evaluate, self.run.detector, arm=self.arm, attack=attack, step=step, guidance=guidance
            )
            picture = self.run.folder / "pictures" / f"{self.arm}_{attack}_{step}_{guidance:g}.png"
            save_strip([concept.pictures, benign.pictures], picture)
            self.rows.append(row)
            write_text(self.file, "".join(json.dumps(asdict(r)) + "\n" for r in self.rows))


def attack_arm(run: Run, name: str, merged: LoadedModel, evaluate: Evaluate, attacks: dict[str, Attack]) -> list[Row]:
    """Score the merged model before and along every attack."""
    scores = Scores(run, name, evaluate)
    scores.measure(merged, BEFORE, 0)
    for label, attack in attacks.items():
        missing = [step for step in attack.steps if not scores.has(label, step)]
        if not missing:
            continue
        say(f"{name}: {label} attack, {max(missing)} steps")
        data = generated_set(
            run.model, run.base_hash, attack.data, run.recipe.data.sampler, run.folder / "cache", run.judge
        )
        left = attack.model_copy(update={"steps": missing})
        finetune(merged, data, left, run.recipe.seed, lambda step, m, label=label: scores.measure(m, label, step))  # type: ignore[misc]
    return scores.rows
