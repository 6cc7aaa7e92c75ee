"""Attack a model and score it along the way; what is measured is never measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from adapter_mu.attack.finetune import finetune
from adapter_mu.attack.pictures import captioned, joined
from adapter_mu.data.cache import content_key, write_text
from adapter_mu.data.sets import LatentSet
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.statistics import Row
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import AnyAttack, Attack, Evaluate, Prompts, Swap
from adapter_mu.stages.prompting import prompt_attack_arm
from adapter_mu.stages.scoring import Scores
from adapter_mu.stages.setting import BEFORE, Run

RECORD = "attacks.json"  # beside an arm's scores: the settings behind each label


def attack_arm(
    run: Run, name: str, merged: LoadedModel, evaluate: Evaluate, attacks: Mapping[str, AnyAttack]
) -> list[Row]:
    """Score the merged model before and along every finetune, then attack it by prompts.

    Raises:
        RecipeError: the folder has scores of another model, or of another attack of the same label.
    """
    scores = Scores(run, name, evaluate)
    scores.belong_to(merged)
    finetunes = {label: attack for label, attack in attacks.items() if isinstance(attack, Attack)}
    _record(run.arm_folder(name) / RECORD, attacks)
    run.announce(f"{name}: scores before any attack" + _done(scores.has(BEFORE, 0)))
    scores.measure(merged, BEFORE, 0)
    for label, attack in finetunes.items():
        for seed in attack.seeds:
            _attack(run, scores, merged, label, attack, seed)
    prompt_attack_arm(run, name, merged, evaluate, attacks)
    return scores.rows


def attack_hash(attack: AnyAttack) -> str:
    """What a curve depends on; not at which steps it is looked at, nor which seeds are run."""
    return content_key(**attack.model_dump(mode="json", exclude={"steps", "seeds"}))


def recorded_attacks(arm_folder: Path) -> dict[str, dict[str, object]]:
    """By label the hash and the settings of every attack whose scores the arm's folder has."""
    record = arm_folder / RECORD
    found: dict[str, dict[str, object]] = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    return found


def _record(record: Path, attacks: Mapping[str, AnyAttack]) -> None:
    known = recorded_attacks(record.parent)
    for label, attack in attacks.items():
        own = attack_hash(attack)
        if known.get(label, {"hash": own})["hash"] != own:
            raise RecipeError(
                f"{record.parent} has scores of another attack named '{label}'; choose another label or --out."
            )
        known[label] = {"hash": own, "settings": attack.model_dump(mode="json", exclude_defaults=True)}
    if attacks:
        write_text(record, json.dumps(known, indent=1))


def _attack(run: Run, scores: Scores, merged: LoadedModel, label: str, attack: Attack, seed: int) -> None:
    """One curve: finetune from the start (it is deterministic) and score at those of its steps that are missing."""
    missing = [step for step in attack.steps if not scores.has(label, step, seed=seed)]
    which = f" with seed {seed}" if len(attack.seeds) > 1 else ""
    run.announce(f"{scores.arm}: {label} attack{which} ({max(attack.steps)} steps)" + _done(not missing))
    if not missing:
        return
    learned = attack.kind == "textual_inversion"
    swap = Swap(word=attack.replaces or run.recipe.concept, new=attack.placeholder) if learned else None

    def at_step(step: int, attacked: LoadedModel) -> None:
        scores.measure(attacked, label, step, seed=seed, strip=seed == attack.seeds[0], swap=swap)

    data, prior = _pictures(run, attack, merged), _drawn(run, attack.prior, merged)
    finetune(merged, data, attack.model_copy(update={"steps": missing}), seed, at_step, prior=prior, swap=swap)


def _pictures(run: Run, attack: Attack, model: LoadedModel) -> LatentSet:
    """The attack's pictures, drawn by the base, with captions as the attacked model's text encoder reads them."""
    data = joined(run.drawn(attack.data), run.drawn(attack.mixed_with) if attack.mixed_with else None)
    return captioned(data, attack.caption).encoded_by(model)


def _drawn(run: Run, spec: Prompts | None, model: LoadedModel) -> LatentSet | None:
    return run.drawn(spec).encoded_by(model) if spec else None


def _done(already: bool) -> str:
    return ", done before" if already else ""
