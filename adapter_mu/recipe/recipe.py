"""A whole recipe and its arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from adapter_mu.errors import RecipeError
from adapter_mu.recipe.attack import AnyAttack, Attack
from adapter_mu.recipe.attack_files import complete
from adapter_mu.recipe.base import Base
from adapter_mu.recipe.data import Data, Prompts
from adapter_mu.recipe.evaluate import Evaluate
from adapter_mu.recipe.merging import changed
from adapter_mu.recipe.prompt_attack import PromptAttack
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
    train: Train = Train()
    meta: Meta | None = None
    attacks: dict[str, AnyAttack] = {}
    attack_data: dict[str, Prompts] = {}  # picture sets that attacks may name
    attack_settings: str = ""  # the folder under recipes/attacks/ with settings for a base of this size
    evaluate: Evaluate | None = None
    arms: dict[str, dict[str, Any]] = {}
    workers: int = Field(1, gt=0)  # arms at once, each in a process with its share of the cores

    @field_validator("arms", "attacks", "attack_data", mode="before")
    @classmethod
    def _none_means_none(cls, value: Any) -> Any:
        """`arms: null` or `attacks: null` drops those of the recipe this one extends, `attacks.clean: null` one."""
        if isinstance(value, Mapping):
            return {name: part for name, part in value.items() if part is not None}
        return {} if value is None else value

    @property
    def finetunes(self) -> dict[str, Attack]:
        """The attacks that move weights or learn a token."""
        return {label: attack for label, attack in self.attacks.items() if isinstance(attack, Attack)}

    @property
    def prompt_attacks(self) -> dict[str, PromptAttack]:
        """The attacks that search for prompts."""
        return {label: attack for label, attack in self.attacks.items() if isinstance(attack, PromptAttack)}

    def arm(self, name: str) -> Recipe:
        """The recipe of one arm: this recipe with the arm's changes merged in."""
        return parse(changed(self.model_dump(mode="json") | {"arms": {}}, self.arms[name]), f"arm {name}")


def parse(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain data; RecipeError in one sentence naming the first wrong key."""
    try:
        return Recipe.model_validate(complete(content))
    except ValidationError as error:
        raise RecipeError(sentence(error, where, Recipe)) from None
