"""Recipes from YAML files, with `extends` and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adapter_mu.errors import RecipeError
from adapter_mu.recipe.recipe import Recipe, merged, parse


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    return next((p for p in (package / "_recipes", package.parent / "recipes") if p.is_dir()), package / "_recipes")


def recipe_names() -> list[str]:
    """The shipped recipes by name; attack files are not recipes."""
    folder = recipe_folder()
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in found if not name.startswith("attacks/"))


def recipe_path(name_or_path: str, folder: Path = Path()) -> Path:
    """The file of a path (relative to `folder`) or of a shipped recipe ("shapes/demo"); RecipeError for neither."""
    for path in (folder / name_or_path, recipe_folder() / f"{name_or_path}.yaml"):
        if path.is_file():
            return path
    raise RecipeError(f"There is no recipe '{name_or_path}'; give a YAML file or a name from `adapter-mu ls`.")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"Recipe {path} extends itself, directly or through others; remove one `extends`.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"Recipe {path} must be a mapping of keys to values.")
    parent = content.pop("extends", None)
    below = _read(recipe_path(str(parent), path.parent), (*seen, path.resolve())) if parent else {}
    return merged(below, content)


def _override(content: dict[str, Any], text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"Override '{text}' must look like key=value, for example train.steps=100.")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"Override '{text}' has a value that is not valid YAML.") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return merged(content, nested)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name or a YAML file by path, with `key=value` overrides; every arm is checked too."""
    path = recipe_path(name_or_path)
    content = _read(path)
    for text in overrides:
        content = _override(content, text)
    recipe = parse(content, f"recipe {name_or_path}")
    for arm in recipe.arms:
        recipe.arm(arm)
    return recipe
