"""results.json of a run folder, and what is asked of its rows everywhere in the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_mu.errors import UserError
from adapter_mu.evaluate.prompt_success import PromptSuccess
from adapter_mu.evaluate.statistics import Row, row_from
from adapter_mu.report.extras import Difference, Quality, items_from

BEFORE, MALICIOUS, CLEAN = "none", "malicious", "clean"
BASE, UNLEARNED, META = "base", "unlearned", "meta-unlearned"
OF_RUN = " · "  # stands between a run's label and an arm's name where several runs are compared


@dataclass(frozen=True)
class Results:
    """All rows of a run and what the page says about them; empty strings and lists where the run says nothing."""

    rows: list[Row]
    concept: str
    title: str
    caption: str
    headline: str
    usual_guidance: float | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    quality: list[Quality] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    prompt_attacks: list[PromptSuccess] = field(default_factory=list)


def load_results(run: Path) -> Results:
    """Read `run`/results.json.

    Raises:
        UserError: the file is missing, is not JSON, has no rows, or a row lacks a field.
    """
    content = _read_json(run / "results.json")
    try:
        results = _results(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run / 'results.json'} cannot be read as results ({error}); evaluate the run again."
        ) from None
    if not results.rows:
        raise UserError(f"{run / 'results.json'} has no rows yet; evaluate the run before asking for its report.")
    return results


def _results(content: Mapping[str, Any]) -> Results:
    meta = content.get("meta") or {}
    concept, usual = str(meta.get("concept", "concept")), meta.get("usual_guidance")
    return Results(
        rows=[row_from(raw) for raw in content["rows"]],
        concept=concept,
        title=str(meta.get("title") or f"Unlearning {concept}"),
        caption=str(meta.get("caption") or ""),
        headline=str(content.get("headline") or ""),
        usual_guidance=None if usual is None else float(usual),
        meta=meta,
        quality=items_from(Quality, content.get("quality")),
        differences=items_from(Difference, content.get("differences")),
        prompt_attacks=items_from(PromptSuccess, content.get("prompt_attacks")),
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
    return _first((BASE, UNLEARNED, META), dict.fromkeys(row.arm for row in rows))


def attacks(rows: Iterable[Row]) -> list[str]:
    """The attacks in the order they are shown: malicious first, clean last, the others between as they came."""
    found = _first((MALICIOUS,), dict.fromkeys(row.attack for row in rows if row.attack != BEFORE))
    return [name for name in found if name != CLEAN] + [name for name in found if name == CLEAN]


def is_base(arm: str) -> bool:
    """Whether the arm is the model everything started from."""
    return arm.rpartition(OF_RUN)[2] == BASE


def plain_twin(arm: str) -> str:
    """The plainly unlearned arm of the same run."""
    run, dot, _ = arm.rpartition(OF_RUN)
    return f"{run}{dot}{UNLEARNED}"


def _first(order: Sequence[str], found: Iterable[str]) -> list[str]:
    names = list(found)
    return [name for name in order if name in names] + [name for name in names if name not in order]


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
