"""Recipes from YAML files, with `extends` and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adapter_mu.errors import RecipeError
from adapter_mu.recipe.merging import changed
from adapter_mu.recipe.recipe import Recipe, parse
from adapter_mu.recipe.yaml_files import read_mapping, recipe_folder


def recipe_names() -> list[str]:
    """The shipped recipes by name; attack files are not recipes, nor is what only others extend (_common)."""
    folder = recipe_folder()
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in found if not name.startswith("attacks/") and "/_" not in name)


def recipe_path(name_or_path: str, folder: Path = Path()) -> Path:
    """The file of a path (relative to `folder`) or of a shipped recipe ("shapes/demo"); RecipeError for neither."""
    for path in (folder / name_or_path, recipe_folder() / f"{name_or_path}.yaml"):
        if path.is_file():
            return path
    raise RecipeError(f"There is no recipe '{name_or_path}'; give a YAML file or a name from `adapter-mu ls`.")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"Recipe {path} extends itself, directly or through others; remove one `extends`.")
    content = read_mapping(path, "Recipe")
    parent = content.pop("extends", None)
    below = _read(recipe_path(str(parent), path.parent), (*seen, path.resolve())) if parent else {}
    return changed(below, content)


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
    return changed(content, nested)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name or a YAML file by path, with `key=value` overrides; every arm is checked too."""
    path = recipe_path(name_or_path)
    content = _read(path)
    # A new method drops the options of the old one, so that it comes before those that are given with it.
    for text in sorted(overrides, key=lambda text: not text.startswith("method.name=")):
        content = _override(content, text)
    recipe = parse(content, f"recipe {name_or_path}")
    for arm in recipe.arms:
        recipe.arm(arm)
    return recipe
