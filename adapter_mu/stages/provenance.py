"""What results rest on: versions, and hashes of the recipe, the models and the attacks."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from adapter_mu.data.cache import content_key
from adapter_mu.recipe import Recipe
from adapter_mu.stages.attacking import recorded_attacks
from adapter_mu.stages.claim import environment


def provenance(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """For `meta` of results.json.

    `environment` (versions and device, as the folder's environment.json recorded them), `recipe_hash`, `models` and
    `attacks` by arm (hash of each UNet; hash and settings of each attack), and the `command` that was typed.
    """
    arms = sorted(path for path in (folder / "arms").iterdir() if path.is_dir())
    models = {arm.name: record for arm in arms if (record := _read(arm / "scored_model.json"))}
    attacks = {arm.name: record for arm in arms if (record := recorded_attacks(arm))}
    return {
        "environment": _read(folder / "environment.json") or environment(),
        "recipe_hash": content_key(**recipe.model_dump(mode="json", exclude={"workers"})),
        "models": models,
        "attacks": attacks,
        "command": command(),
    }


def command() -> str:
    """What was typed."""
    return shlex.join(["adapter-mu", *sys.argv[1:]])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
