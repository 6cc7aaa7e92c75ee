"""Tables 4 and 5 and Appendix F: one meta-unlearned arm, one setting varied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_mu.recipe import Attack
from adapter_mu.reproduce.layout import Cell, Sheet
from adapter_mu.reproduce.paper import META, RULES, TABLE4, TABLE5
from adapter_mu.reproduce.quality import conventions, quality_cell
from adapter_mu.reproduce.runs import World, variant, worst_row

ATTACK, AFTER = "hrm-m", 300  # the paper's M = 1 and SGD scores are those of its Table 1 after 300 steps on HRM-m
SHORT = 0.3  # the paper trains for 300 and for 1000 steps
RULE_STEPS = 3  # the first step of momentum from rest is that of SGD, so that M = 1 would compare nothing


def table4(world: World) -> Sheet:
    """gamma_1 : gamma_2 at 1:1, 1:10 and 10:1, trained for three tenths of the row's steps and for all of them.

    The row's own weights count as 1:1; the larger weight of a ratio is ten times its own.
    """
    recipe = world.recipe("esd-u-1")
    own = recipe.arm(META)
    assert own.meta is not None
    rows = {}
    for ratio, paper in TABLE4.items():
        first, second = (float(part) for part in ratio.split(":"))
        cells: list[Cell] = []
        for share, numbers in ((SHORT, paper[:2]), (1.0, paper[2:])):
            steps = round(share * own.train.steps)
            changes = {
                "train": {"steps": steps, "unlearn_weight": first * own.train.unlearn_weight},
                "meta": {"weight": second * own.meta.weight},
            }
            folder = _run(world, "esd-u-1", changes, f"gamma-{ratio.replace(':', '-')}-{steps}")
            cells += [_score(folder, "none", 0, numbers[0]), _score(folder, ATTACK, AFTER, numbers[1])]
        rows[ratio] = cells
    heads = [f"{when}, {part} steps" for part in ("short", "all") for when in ("before", "after")]
    title = f"Table 4 on {world.name}: meta-unlearned ESD-u-1, gamma_1 : gamma_2"
    return Sheet(title, heads, rows, [f"After: {AFTER} attack steps on {ATTACK}. Short: {SHORT:g} of the row's steps."])


def table5(world: World) -> Sheet:
    """M = 1, 3 and 5 attacker steps for ESD-u-3."""
    rows, folder = {}, world.folder
    for steps, (fid, clip, after) in TABLE5.items():
        folder = _run(world, "esd-u-3", {"meta": {"attacker": {"steps": steps}}}, f"m-{steps}")
        rows[f"M = {steps}"] = [
            quality_cell(folder, META, "fid", fid),
            quality_cell(folder, META, "clip_score", clip),
            _score(folder, "none", 0, None),
            _score(folder, ATTACK, AFTER, after),
        ]
    title = f"Table 5 on {world.name}: meta-unlearned ESD-u-3, attacker steps M"
    return Sheet(title, ["fid", "clip_score", "before", f"after {AFTER} on {ATTACK}"], rows, conventions(folder))


def rules(world: World) -> Sheet:
    """Appendix F: the simulated attacker takes SGD, momentum or Adam steps, for ESD-u-3."""
    attack = world.recipe("esd-u-3").attacks[ATTACK]
    assert isinstance(attack, Attack)
    rows = {}
    for rule, after in RULES.items():
        attacker: dict[str, Any] = {"rule": rule, "steps": RULE_STEPS}
        if rule == "adamw":  # its steps have the size of the rate; it is the attack's own
            attacker |= {"lr": attack.lr, "required_drop": 0.0}
        folder = _run(world, "esd-u-3", {"meta": {"attacker": attacker}}, f"rule-{rule}")
        rows[rule] = [_score(folder, "none", 0, None), _score(folder, ATTACK, AFTER, after)]
    title = f"Appendix F on {world.name}: meta-unlearned ESD-u-3, the attacker's update rule"
    note = f"M = {RULE_STEPS} for all three: with M = 1 momentum's step is SGD's. Adam moves at the attack's own rate."
    return Sheet(title, ["before", f"after {AFTER} on {ATTACK}"], rows, [note])


def _run(world: World, row: str, changes: Mapping[str, Any], name: str) -> Path:
    """The row's meta-unlearned arm with changes, attacked once."""
    recipe = variant(world.recipe(row), changes)
    attack = recipe.attacks[ATTACK].model_copy(update={"steps": [AFTER]})
    return world.run(recipe.model_copy(update={"attacks": {ATTACK: attack}}), f"{row}_{name}")


def _score(folder: Path, attack: str, step: int, paper: float | None) -> Cell:
    row = worst_row(folder, META, attack, step)
    return Cell(paper=paper) if row is None else Cell(row.score, row.low, row.high, paper)
