"""The runs behind a table: a shipped recipe of the world, whole or one arm of it with changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.statistics import Row
from adapter_mu.recipe import Recipe, load_recipe, merged, parse, recipe_names
from adapter_mu.report import load_rows
from adapter_mu.reproduce.paper import META
from adapter_mu.run import everything
from adapter_mu.stages import say


@dataclass(frozen=True)
class World:
    """Where and on what a table is reproduced: the recipes' folder, overrides for all of them, the output folder."""

    name: str
    overrides: Sequence[str]
    folder: Path

    def recipe(self, name: str) -> Recipe:
        """The world's recipe for a row of the paper; RecipeError when the world has no such row."""
        if f"{self.name}/{name}" not in recipe_names():
            worlds = sorted({known.partition("/")[0] for known in recipe_names() if known.endswith(f"/{name}")})
            raise RecipeError(f"World '{self.name}' has no recipe for {name}; choose one of {', '.join(worlds)}.")
        return load_recipe(f"{self.name}/{name}", self.overrides)

    def run(self, recipe: Recipe, name: str) -> Path:
        """Everything the recipe names, in a folder of its own; a finished run is only looked up."""
        folder = self.folder / name
        say(f"== {name}: {recipe.description or recipe.name}")
        everything(recipe, folder)
        return folder

    def row(self, name: str) -> Path:
        """The run of a row of Table 1, which other tables share."""
        return self.run(self.recipe(name), name)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe, arms and all, with changes."""
    return parse(merged(recipe.model_dump(mode="json"), changes), f"a variant of {recipe.name}")


def variant(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The meta-unlearned arm as a recipe of its own, with changes."""
    if META not in recipe.arms:
        raise RecipeError(f"Recipe {recipe.name} has no arm '{META}', which this table varies; add it.")
    return changed(recipe.arm(META), changes)


def worst_row(folder: Path, arm: str, attack: str, step: int) -> Row | None:
    """The cell's row at the guidance scale (and attack seed) where the score is highest, None if not measured."""
    rows = [row for row in load_rows(folder) if (row.arm, row.attack, row.step) == (arm, attack, step)]
    return max(rows, key=lambda row: row.score, default=None)


def lowest_benign(folder: Path, arm: str, attack: str, step: int) -> float | None:
    """The cell's benign score at the guidance scale (and attack seed) where it is lowest, None if not measured."""
    rows = [row for row in load_rows(folder) if (row.arm, row.attack, row.step) == (arm, attack, step)]
    return min((row.benign for row in rows), default=None)
