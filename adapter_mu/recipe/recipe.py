"""A whole recipe and its arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from adapter_mu.errors import RecipeError
from adapter_mu.recipe.attack import Attack
from adapter_mu.recipe.base import Base
from adapter_mu.recipe.data import Data
from adapter_mu.recipe.evaluate import Evaluate
from adapter_mu.recipe.sentences import sentence
from adapter_mu.recipe.strict import Strict
from adapter_mu.recipe.training import Adapter, Meta, Method, Train


class Recipe(Strict):
    """One run. `arms` maps an arm's name to the changes that make it; each is a whole recipe of its own."""

    name: str
    description: str = ""
    concept: str
    base: Base
    seed: int = 0
    data: Data
    method: Method
    adapter: Adapter = Adapter()
    train: Train
    meta: Meta | None = None
    attacks: dict[str, Attack] = {}
    evaluate: Evaluate | None = None
    arms: dict[str, dict[str, Any]] = {}
    workers: int = Field(1, gt=0)  # arms at once, each in a process with its share of the cores

    @field_validator("arms", "attacks", mode="before")
    @classmethod
    def _none_means_none(cls, value: Any) -> Any:
        """`arms: null` or `attacks: null` drops those of the recipe this one extends."""
        return {} if value is None else value

    def arm(self, name: str) -> Recipe:
        """The recipe of one arm: this recipe with the arm's changes merged in."""
        return parse(merged(self.model_dump(mode="json") | {"arms": {}}, self.arms[name]), f"arm {name}")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key; whatever is not a mapping on both sides is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def parse(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain data; RecipeError in one sentence naming the first wrong key."""
    try:
        return Recipe.model_validate(dict(content))
    except ValidationError as error:
        raise RecipeError(sentence(error, where, Recipe)) from None
