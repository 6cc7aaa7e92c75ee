"""Quality items of a run's results.json, as cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapter_mu.reproduce.layout import Cell


def quality_cell(folder: Path, arm: str, metric: str, paper: float | None) -> Cell:
    """The arm's quality before any attack by one metric, empty where the run did not measure it."""
    found = [item for item in _items(folder) if (item["arm"], item["metric"], item["step"]) == (arm, metric, 0)]
    if not found:
        return Cell(paper=paper)
    return Cell(found[0]["value"], found[0].get("low"), found[0].get("high"), paper, digits=2)


def conventions(folder: Path) -> list[str]:
    """How the run measured its quality, a line a metric: the numbers compare with nothing measured otherwise."""
    return [f"{metric}: {text}." for metric, text in {i["metric"]: i["convention"] for i in _items(folder)}.items()]


def _items(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return list(content.get("quality") or [])
