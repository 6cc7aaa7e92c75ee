"""Attack a model and score it along the way; what is measured is never measured again."""

from __future__ import annotations

from adapter_mu.attack.finetune import finetune
from adapter_mu.evaluate.statistics import Row
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Attack, Evaluate
from adapter_mu.stages.scoring import Scores
from adapter_mu.stages.setting import BEFORE, Run


def attack_arm(run: Run, name: str, merged: LoadedModel, evaluate: Evaluate, attacks: dict[str, Attack]) -> list[Row]:
    """Score the merged model before and along every attack."""
    scores = Scores(run, name, evaluate)
    scores.belong_to(merged)
    run.announce(f"{name}: scores before any attack" + _done(scores.has(BEFORE, 0)))
    scores.measure(merged, BEFORE, 0)
    for label, attack in attacks.items():
        missing = [step for step in attack.steps if not scores.has(label, step)]
        run.announce(f"{name}: {label} attack ({max(attack.steps)} steps)" + _done(not missing))
        if missing:
            _attack(run, scores, merged, label, attack.model_copy(update={"steps": missing}))
    return scores.rows


def _attack(run: Run, scores: Scores, merged: LoadedModel, label: str, attack: Attack) -> None:
    """Finetune from the start and score at the attack's steps: an attack is too short to be worth a saved state."""

    def at_step(step: int, attacked: LoadedModel) -> None:
        scores.measure(attacked, label, step)

    finetune(merged, run.drawn(attack.data), attack, run.recipe.seed, at_step)


def _done(already: bool) -> str:
    return ", done before" if already else ""
