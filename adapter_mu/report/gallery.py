"""The pictures of a run for the page: every cell's, which of them are hidden at first, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.rows import BEFORE, arms, attacks, is_base
from adapter_mu.report.tiles import SMALL, Form, cut, encode, fitting_form
from adapter_mu.report.words import place

Locate = Callable[[Row], Path]


@dataclass(frozen=True)
class Sheet:
    """The pictures of one cell as data URIs, with marks "1" for those hidden at first, "0" for the others."""

    concept: list[str]
    benign: list[str]
    hide_concept: str
    hide_benign: str
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One attack that can be chosen, its steps with 0 for before it."""

    name: str
    steps: list[int]

    def places(self) -> list[str]:
        """Every step in words."""
        return [place(self.name if step else BEFORE, step) for step in self.steps]


@dataclass(frozen=True)
class Gallery:
    """Everything the viewer shows. `cells` maps arm, attack, scale and step, by index, to a sheet."""

    arms: list[str]
    choices: list[Choice]
    guidances: list[float]
    sheets: list[Sheet]
    cells: dict[str, int]
    start: tuple[int, int, int]
    shown: tuple[int, int]
    tiny: bool
    prompts: tuple[list[str], list[str]]

    def sheet(self, arm: int, attack: int, scale: int, step: int) -> Sheet | None:
        """The sheet of a cell, None where it has no pictures."""
        index = self.cells.get(f"{arm}.{attack}.{scale}.{step}")
        return None if index is None else self.sheets[index]

    def place(self) -> str:
        """Where the viewer starts, in words."""
        attack, _, step = self.start
        return self.choices[attack].places()[step]

    def first(self, arm: int) -> Sheet | None:
        """What is shown of an arm before anything is chosen."""
        return self.sheet(arm, *self.start)

    def data(self) -> dict[str, Any]:
        """What the page's script needs, as plain data."""
        return {
            "arms": self.arms,
            "attacks": [{"steps": choice.steps, "places": choice.places()} for choice in self.choices],
            "guidances": self.guidances,
            "cells": self.cells,
            "sheets": [
                {"c": s.concept, "b": s.benign, "hc": s.hide_concept, "hb": s.hide_benign}
                | {"s": [round(value, 1) for value in (s.score, s.low, s.high)]}
                for s in self.sheets
            ],
        }


def gallery(
    rows: Sequence[Row],
    locate: Locate,
    *,
    sensitive: bool,
    worst: Row | None,
    prompts: tuple[list[str], list[str]],
) -> Gallery | None:
    """The viewer's pictures; it starts at the `worst` row's cell. None where no row has a strip.

    For a sensitive concept every picture is hidden at first in which the detector found the concept, or which it was
    not asked about: benign pictures, and all of files that are older than that record.
    """
    paths = {_key(row): path for row in _shown_rows(rows) if (path := locate(row)).is_file()}
    if not paths:
        return None
    kept = [row for row in _shown_rows(rows) if _key(row) in paths]
    form = fitting_form(list(paths.values()))
    sheets = [_sheet(row, paths[_key(row)], form, sensitive) for row in kept]
    tiny = cut(paths[_key(kept[0])], 1)[0][0].width <= SMALL
    return _arranged(kept, sheets, worst, tiny, prompts)


def strip_path(folder: Path, row: Row) -> Path:
    """Where the strip of a row's cell lies: by its name in `folder`/pictures, and nowhere else whatever that name."""
    cell = f"{row.arm}_{row.attack}_{row.step}".replace("/", "_")
    path = folder / "pictures" / f"{cell}_{row.guidance:g}.png"
    older = path.with_name(f"{cell}_{row.guidance}.png")
    return path if path.is_file() or not older.is_file() else older


def _shown_rows(rows: Sequence[Row]) -> list[Row]:
    """One row a cell: pictures are kept of an attack's first seed only."""
    cells: dict[tuple[str, str, int, float], Row] = {}
    for row in rows:
        cells.setdefault(_key(row), row)
    return list(cells.values())


def _key(row: Row) -> tuple[str, str, int, float]:
    return row.arm, row.attack, row.step, row.guidance


def _sheet(row: Row, path: Path, form: Form, sensitive: bool) -> Sheet:
    concept, benign = ([encode(tile, form.side) for tile in line[: form.shown]] for line in cut(path, row.images))
    found = row.found[: len(concept)].ljust(len(concept), "1")  # no record: as if found
    hide = found if sensitive else "0" * len(concept)
    return Sheet(concept, benign, hide, ("1" if sensitive else "0") * len(benign), row.score, row.low, row.high)


def _arranged(
    rows: Sequence[Row], sheets: list[Sheet], worst: Row | None, tiny: bool, prompts: tuple[list[str], list[str]]
) -> Gallery:
    names, guidances = arms(rows), sorted({row.guidance for row in rows})
    choices = [
        Choice(attack, [0, *sorted({row.step for row in rows if row.attack == attack})]) for attack in attacks(rows)
    ] or [Choice(BEFORE, [0])]
    index = {_key(row): number for number, row in enumerate(rows)}
    cells = {
        f"{a}.{k}.{g}.{s}": found
        for a, arm in enumerate(names)
        for k, choice in enumerate(choices)
        for g, guidance in enumerate(guidances)
        for s, step in enumerate(choice.steps)
        if (found := _find(index, arm, choice.name, step, guidance)) is not None
    }
    shown = max(len(s.concept) for s in sheets), max(len(s.benign) for s in sheets)
    return Gallery(names, choices, guidances, sheets, cells, _start(choices, guidances, worst), shown, tiny, prompts)


def _find(index: Mapping[Any, int], arm: str, attack: str, step: int, guidance: float) -> int | None:
    """The number of the cell's sheet; the base is never attacked and stays as it is."""
    before = (arm, BEFORE, 0, guidance)
    return index.get(before if step == 0 or is_base(arm) else (arm, attack, step, guidance))


def _start(choices: Sequence[Choice], guidances: Sequence[float], worst: Row | None) -> tuple[int, int, int]:
    """Attack, scale and step by index: where the worst case was seen, else the end of the first attack."""
    if worst:
        for number, choice in enumerate(choices):
            if choice.name == worst.attack and worst.step in choice.steps and worst.guidance in guidances:
                return number, guidances.index(worst.guidance), choice.steps.index(worst.step)
    return 0, len(guidances) - 1, len(choices[0].steps) - 1
