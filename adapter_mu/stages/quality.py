"""The quality of an arm's pictures before any attack, measured once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapter_mu.data.cache import write_text
from adapter_mu.evaluate.quality import quality
from adapter_mu.models import LoadedModel
from adapter_mu.stages.scoring import Scores
from adapter_mu.stages.setting import Run

FILE = "quality.json"  # beside an arm's scores


def quality_of_arm(run: Run, name: str, model: LoadedModel) -> None:
    """Measure what `evaluate.quality` asks for and keep it; nothing where it asks for none or it was done before.

    Raises:
        RecipeError: the folder has scores of another model of that name.
    """
    evaluate, file = run.recipe.evaluate, run.arm_folder(name) / FILE
    if evaluate is None or evaluate.quality is None:
        return
    Scores(run, name, evaluate).belong_to(model)
    done = ", done before" if file.is_file() else ""
    run.announce(f"{name}: {', '.join(evaluate.quality.measures)}{done}")
    if not done:
        items = quality(model, run.model, evaluate, arm=name, cache=run.folder / "cache")
        write_text(file, json.dumps(items, indent=1))


def quality_items(arm_folder: Path) -> list[dict[str, Any]]:
    """What was measured of one arm, for `quality` of results.json."""
    file = arm_folder / FILE
    items: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return items


def quality_done(arm_folder: Path) -> bool:
    """Whether the arm's quality was measured."""
    return (arm_folder / FILE).is_file()
