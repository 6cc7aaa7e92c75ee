"""results.json of a run folder, and what is asked of its rows everywhere in the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_mu.errors import UserError
from adapter_mu.evaluate.statistics import Row, row_from

BEFORE, MALICIOUS, CLEAN = "none", "malicious", "clean"
BASE, UNLEARNED, META = "base", "unlearned", "meta-unlearned"


@dataclass(frozen=True)
class Results:
    """All rows of a run and what the page says about them; empty strings where the run says nothing."""

    rows: list[Row]
    concept: str
    title: str
    caption: str
    headline: str
    usual_guidance: float | None


def load_results(run: Path) -> Results:
    """Read `run`/results.json.

    Raises:
        UserError: the file is missing, is not JSON, has no rows, or a row lacks a field.
    """
    content = _read_json(run / "results.json")
    try:
        rows = [row_from(raw) for raw in content["rows"]]
        meta = content.get("meta") or {}
        concept, usual = str(meta.get("concept", "concept")), meta.get("usual_guidance")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run / 'results.json'} cannot be read as results ({error}); evaluate the run again."
        ) from None
    if not rows:
        raise UserError(f"{run / 'results.json'} has no rows yet; evaluate the run before asking for its report.")
    return Results(
        rows=rows,
        concept=concept,
        title=str(meta.get("title") or f"Unlearning {concept}"),
        caption=str(meta.get("caption") or ""),
        headline=str(content.get("headline") or ""),
        usual_guidance=None if usual is None else float(usual),
    )


def load_rows(run: Path) -> list[Row]:
    """The rows of `run`/results.json; UserError as in `load_results`."""
    return load_results(run).rows


def select(rows: Iterable[Row], arm: str, attack: str, step: int | None = None) -> list[Row]:
    """The rows of one arm and attack, at one step if given, by step and guidance scale."""
    found = [row for row in rows if (row.arm, row.attack) == (arm, attack) and step in (None, row.step)]
    return sorted(found, key=lambda row: (row.step, row.guidance))


def worst(rows: Sequence[Row]) -> Row:
    """The row with the highest score: hiding the concept at one guidance scale must not count."""
    return max(rows, key=lambda row: row.score)


def lowest_benign(rows: Sequence[Row]) -> float:
    """The benign score at the guidance scale where it is lowest, in percent."""
    return min(row.benign for row in rows)


def arms(rows: Iterable[Row]) -> list[str]:
    """The arms in the order they are shown: base, unlearned, meta-unlearned, then the others as they came."""
    found = dict.fromkeys(row.arm for row in rows)
    return [arm for arm in (BASE, UNLEARNED, META) if arm in found] + [
        arm for arm in found if arm not in (BASE, UNLEARNED, META)
    ]


def attacks(rows: Iterable[Row]) -> list[str]:
    """The attacks in the order they are shown: malicious, clean, then the others as they came."""
    found = dict.fromkeys(row.attack for row in rows if row.attack != BEFORE)
    return [attack for attack in (MALICIOUS, CLEAN) if attack in found] + [
        attack for attack in found if attack not in (MALICIOUS, CLEAN)
    ]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no {path}; give the folder of a run that has been evaluated.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); evaluate the run again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object with rows; evaluate the run again.")
    return content
