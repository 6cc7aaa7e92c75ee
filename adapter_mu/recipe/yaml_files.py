"""YAML files of recipes and attacks: where the shipped ones lie, and how one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from adapter_mu.errors import RecipeError


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    return next((p for p in (package / "_recipes", package.parent / "recipes") if p.is_dir()), package / "_recipes")


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; RecipeError, naming `what` the file is, when it holds anything else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{what} {path} must be a mapping of keys to values.")
    return content
