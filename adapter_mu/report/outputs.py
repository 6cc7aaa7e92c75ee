"""The report for machines: report.json and results.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapter_mu import __version__
from adapter_mu.data.cache import write_text
from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.facts import Facts
from adapter_mu.report.rows import BEFORE, Results, select
from adapter_mu.report.summary import areas, worst_cases
from adapter_mu.report.words import worst_sentence

PLAIN = ("arm", "attack", "seed", "step", "guidance", "score", "low", "high", "benign", "benign_low", "benign_high")
LAST = ("images", "found", "benign_found")


def write_summary(path: Path, results: Results, facts: Facts) -> None:
    """What the page says, as JSON: headline, worst cases, areas with intervals, everything it was made with."""
    write_text(path, json.dumps(summary(results, facts), indent=1, ensure_ascii=False) + "\n")


def summary(results: Results, facts: Facts) -> dict[str, Any]:
    """The summary as plain data; scores and areas in percent."""
    cases = worst_cases(results.rows)
    return {
        "title": results.title,
        "concept": results.concept,
        "headline": [worst_sentence(row, results.concept) for row in cases],
        "worst_cases": [_scored(row) for row in cases],
        "before": [_scored(row) for arm in dict.fromkeys(r.arm for r in results.rows) for row in _before(results, arm)],
        "areas": [asdict(area) for area in areas(results.rows)],
        "prompt_attacks": [asdict(item) for item in results.prompt_attacks],
        "differences": [asdict(item) for item in results.differences],
        "quality": [asdict(item) for item in results.quality],
        "detector": facts.detector,
        "command": facts.command,
        "environment": facts.environment,
        "hashes": facts.hashes,
        "adapter_mu": __version__,
    }


def _before(results: Results, arm: str) -> list[Row]:
    return select(results.rows, arm, BEFORE)


def _scored(row: Row) -> dict[str, Any]:
    kept = ("arm", "attack", "step", "guidance", "score", "low", "high", "benign", "images", "thresholds")
    return {name: getattr(row, name) for name in kept}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Every row with every field; a detector's thresholds have columns of their own."""
    names = list(dict.fromkeys(name for row in rows for name in row.thresholds))
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([*PLAIN, *(f"score at {name}" for name in names), *LAST])
    for row in rows:
        shares = [row.thresholds.get(name, "") for name in names]
        table.writerow([*(getattr(row, f) for f in PLAIN), *shares, *(getattr(row, f) for f in LAST)])
    write_text(path, buffer.getvalue())
