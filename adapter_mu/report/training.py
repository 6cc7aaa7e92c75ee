"""Training logs of a run: every term of the objective by name, and how the gradients agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Log = list[dict[str, float]]
COSINE, PRODUCT = "gradient_cosine", "gradient_alignment"
MEASURES = {COSINE: "cosine", PRODUCT: "inner product"}  # the paper's figure 6 normalises the gradients too


@dataclass(frozen=True)
class Trend:
    """A least-squares line: its values at the first and last x, its slope and that slope's standard error."""

    start: tuple[float, float]
    end: tuple[float, float]
    slope: float
    error: float | None


def load_training(run: Path, names: Sequence[str]) -> dict[str, Log]:
    """The training log of each arm that has one: a list of lines, each `step` and the terms by name."""
    logs = {}
    for arm in (name for name in names if Path(name).name == name):  # only files of the run itself
        for path in (run / f"training_{arm}.jsonl", run / "arms" / arm / "train.jsonl"):
            if path.is_file():
                logs[arm] = [kept for text in path.read_text(encoding="utf-8").splitlines() if (kept := _line(text))]
                break
    return {arm: log for arm, log in logs.items() if log}


def _line(text: str) -> dict[str, float]:
    """The numbers of a line; nothing for the last line of a run that was killed while writing it."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return {}
    numbers = {k: float(v) for k, v in content.items() if isinstance(v, int | float) and math.isfinite(v)}
    return numbers if "step" in numbers else {}


def terms(logs: Mapping[str, Log]) -> list[str]:
    """The terms that any log names, in order, without those of the gradients' agreement."""
    found = dict.fromkeys(key for log in logs.values() for line in log for key in line)
    return [term for term in found if term not in ("step", COSINE, PRODUCT)]


def agreement(logs: Mapping[str, Log]) -> tuple[str, dict[str, tuple[list[float], list[float]]]]:
    """How the unlearning and meta gradients' agreement was logged: the cosine's or else the product's steps and values.

    Returns:
        The measure in words, "" where none was logged, and (steps, values) by arm.
    """
    for term, measure in MEASURES.items():
        found = {arm: series(log, term) for arm, log in logs.items()}
        if kept := {arm: points for arm, points in found.items() if points[0]}:
            return measure, kept
    return "", {}


def series(log: Log, term: str) -> tuple[list[float], list[float]]:
    """Steps and values of one term."""
    lines = [line for line in log if term in line]
    return [line["step"] for line in lines], [line[term] for line in lines]


def smoothed(values: Sequence[float]) -> list[float]:
    """A trailing mean over a twelfth of the run, for the eye only."""
    window = max(1, len(values) // 12)
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i + 1 - window) : i + 1]]]


def trend(xs: Sequence[float], ys: Sequence[float]) -> Trend | None:
    """The least-squares line through the points; None where they do not fix one."""
    count = len(xs)
    if count < 2 or min(xs) == max(xs):
        return None
    mean_x, mean_y = sum(xs) / count, sum(ys) / count
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    error = math.sqrt(rest / (count - 2) / spread) if count > 2 else None
    first, last = min(xs), max(xs)
    return Trend((first, mean_y + slope * (first - mean_x)), (last, mean_y + slope * (last - mean_x)), slope, error)
