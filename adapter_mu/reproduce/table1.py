"""Table 1: six methods, unlearned and meta-unlearned, before and along three finetunes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapter_mu.evaluate.statistics import area_under_curve
from adapter_mu.reproduce.layout import Cell, Sheet
from adapter_mu.reproduce.paper import BASE_SCORE, COLUMNS, META, ROWS, STEPS, TABLE1, UNLEARNED
from adapter_mu.reproduce.runs import World, lowest_benign, worst_row

MALICIOUS = ("hrm-m", "hrm-s")


def table1(world: World) -> Sheet:
    """Run (or look up) the six rows and lay them out as the paper does."""
    recipes = {label: world.recipe(name) for label, name in ROWS.items()}  # all are read before any starts
    folders = {label: world.run(recipe, ROWS[label]) for label, recipe in recipes.items()}
    rows = {"base": [_cell(next(iter(folders.values())), "base", *COLUMNS[0], BASE_SCORE), *[Cell()] * 12]}
    for label, folder in folders.items():
        for arm in (UNLEARNED, META):
            paper = TABLE1[label, arm]
            rows[f"{label} {arm}"] = [
                _cell(folder, arm, *column, number) for column, number in zip(COLUMNS, paper, strict=True)
            ]
    heads = ["before", *(f"{attack} {step}" for attack, step in COLUMNS[1:])]
    title = f"Table 1 on {world.name}: share of pictures that show the concept, percent, worst guidance scale"
    return Sheet(title, heads, rows, _notes(folders))


def _cell(folder: Path, arm: str, attack: str, step: int, paper: float) -> Cell:
    row = worst_row(folder, arm, attack, step)
    return Cell(paper=paper) if row is None else Cell(row.score, row.low, row.high, paper)


@dataclass(frozen=True)
class Comparison:
    """The two arms of one method: cells after attacks in which meta is lower, or equal; area ratio; benign scores."""

    lower: int
    equal: int
    cells: int
    ratio: float | None
    benign: tuple[float | None, float | None]


def compare(folder: Path) -> Comparison:
    """Meta-unlearned against unlearned over the cells of Table 1 that follow an attack."""
    pairs = {
        column: [row.score for arm in (UNLEARNED, META) if (row := worst_row(folder, arm, *column))]
        for column in COLUMNS[1:]
    }
    full = {column: pair for column, pair in pairs.items() if len(pair) == 2}
    areas = [_area([pair[i] for (attack, _), pair in full.items() if attack in MALICIOUS]) for i in (0, 1)]
    return Comparison(
        sum(meta < plain for plain, meta in full.values()),
        sum(meta == plain for plain, meta in full.values()),
        len(full),
        areas[1] / areas[0] if areas[0] and areas[1] is not None else None,
        (lowest_benign(folder, UNLEARNED, *COLUMNS[0]), lowest_benign(folder, META, *COLUMNS[0])),
    )


def _area(scores: list[float]) -> float | None:
    whole = len(scores) == len(MALICIOUS) * len(STEPS)
    return area_under_curve(range(len(scores)), scores) if whole else None


def _notes(folders: dict[str, Path]) -> list[str]:
    every = {label: compare(folder) for label, folder in folders.items()}
    lower, equal, cells = (sum(getattr(c, part) for c in every.values()) for part in ("lower", "equal", "cells"))
    notes = [
        f"Meta-unlearned lies below unlearned in {lower} of {cells} attacked cells, equal in {equal} (paper: 72 of 72)."
    ]
    ratios = [c.ratio for c in every.values() if c.ratio is not None]
    if ratios:
        paper = sum(_paper_ratio(label) for label in folders) / len(folders)
        notes.append(f"Mean ratio of the malicious areas: {sum(ratios) / len(ratios):.2f} (paper: {paper:.2f}).")
    for label, c in every.items():
        ratio = "-" if c.ratio is None else f"{c.ratio:.2f}"
        before = " and ".join("-" if b is None else f"{b:.1f}" for b in c.benign)
        notes.append(f"{label}: area ratio {ratio}, lower in {c.lower} of {c.cells}; benign before attacks {before}.")
    return notes


def _paper_ratio(label: str) -> float:
    attacked = [i for i, (attack, _) in enumerate(COLUMNS) if attack in MALICIOUS]
    meta, plain = (sum(TABLE1[label, arm][i] for i in attacked) for arm in (META, UNLEARNED))
    return meta / plain
