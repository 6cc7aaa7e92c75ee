"""Published prompt lists as CSV: I2P, its nudity subset of UnlearnDiffAtk, COCO captions."""

from __future__ import annotations

import csv
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Prompts

# The first that is there counts: what UnlearnDiffAtk and ESD call it, what I2P calls it, plain words.
TEXT = ("prompt", "caption", "text")
SEED = ("evaluation_seed", "sd_seed", "seed")
GUIDANCE = ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class CsvRow:
    """A row's prompt, the seed and guidance scale it asks for, and all its columns as text."""

    text: str
    seed: int | None
    guidance: float | None
    columns: dict[str, str]


def csv_rows(spec: Prompts) -> list[CsvRow]:
    """The rows of `spec.csv` that `spec.only` keeps, in order.

    Raises:
        RecipeError: no such file, no column with prompts, a seed or guidance that is no number, or no row left.
    """
    assert spec.csv is not None
    content = _read(spec.csv)
    columns = list(content[0])
    if unknown := [name for name in spec.only if name not in columns]:
        raise RecipeError(f"{spec.csv} has no column '{unknown[0]}' for `only`; it has {', '.join(columns)}.")
    kept = [(line, row) for line, row in enumerate(content, start=2) if _passes(row, spec.only)]
    if not kept:
        raise RecipeError(f"No row of {spec.csv} passes `only`; loosen it.")
    text, seed, guidance = (_first(columns, names) for names in (TEXT, SEED, GUIDANCE))
    if text is None:
        raise RecipeError(f"{spec.csv} has no column {', '.join(TEXT)}; it has {', '.join(columns)}: rename one.")
    rows = []
    for line, row in kept:
        number = _number(row, seed, spec.csv, line)
        own = None if number is None else int(number)
        rows.append(CsvRow(row[text].strip(), own, _number(row, guidance, spec.csv, line), row))
    return rows


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise RecipeError(f"CSV file {path} does not exist; correct the path (docs/data.md says where lists are).")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"CSV file {path} cannot be read ({error}); save it as UTF-8, comma separated.") from None
    if not found:
        raise RecipeError(f"CSV file {path} has no rows below its header; give one with a column `prompt`.")
    return found


def _first(columns: list[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in columns), None)


def _number(row: Mapping[str, str], column: str | None, path: Path, line: int) -> float | None:
    """None for a missing column and an empty cell; float is exact up to 2^53, and seeds are below 2^32."""
    text = row[column].strip() if column else ""
    try:
        return float(text) if text else None
    except ValueError:
        raise RecipeError(f"{path}, row {line}: '{column}' is '{text}', not a number; correct it.") from None


def _passes(row: Mapping[str, str], only: Mapping[str, str | int | float]) -> bool:
    return all(_fits(row[column].strip(), str(wanted)) for column, wanted in only.items())


def _fits(cell: str, wanted: str) -> bool:
    """A comparison such as ">50" for numbers; anything else is a pattern with * and ?, or the same number."""
    sign = next((s for s in COMPARISONS if wanted.startswith(s)), None)
    try:
        if sign:
            return COMPARISONS[sign](float(cell), float(wanted.removeprefix(sign)))
        return fnmatch(cell, wanted) or float(cell) == float(wanted)
    except ValueError:
        return False
