"""Which attacks of a recipe, of attack files and of a suite are meant, with changes that hold for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_mu.errors import RecipeError
from adapter_mu.recipe.attack import AnyAttack
from adapter_mu.recipe.attack_files import NoSuchFile, read_attack, read_suite
from adapter_mu.recipe.prompt_attack import PROMPT_KINDS
from adapter_mu.recipe.recipe import Recipe, parse


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, whichever recipe it will be asked of.

    Attributes:
        names: labels of the recipe's attacks, shipped attack files ("lora_r16") or YAML paths.
        suite: a shipped suite ("standard") or a YAML path; without a name or suite all attacks of the recipe are meant.
        steps: where the curves have points, in place of each attack's own; 0, the model before, is always there.
        seeds: in place of each attack's own.
        rates: learning rates in place of each attack's own; several make an attack each.
    """

    names: Sequence[str] = ()
    suite: str | None = None
    steps: Sequence[int] = ()
    seeds: Sequence[int] = ()
    rates: Sequence[float] = ()

    def of(self, recipe: Recipe) -> dict[str, AnyAttack]:
        """The attacks by label, ready to run.

        Raises:
            RecipeError: there is no such attack or suite, it names a set that the recipe lacks, or a change does not
                fit it.
        """
        if self.steps and not any(self.steps):
            return {}
        known = {label: attack.model_dump(mode="json") for label, attack in recipe.attacks.items()}
        entries = dict(read_suite(self.suite, recipe.attack_settings)) if self.suite else {}
        entries |= {Path(name).stem: known.get(name) or _file(name, recipe) for name in self.names}
        changed = {label: {**entry, **self._changes(entry)} for label, entry in (entries or known).items()}
        content = recipe.model_dump(mode="json") | {"arms": {}, "attacks": changed}
        sets = {label: attack["data"] for label, attack in known.items() if "data" in attack}
        content["attack_data"] = sets | content["attack_data"]
        return parse(content, f"recipe {recipe.name}").attacks

    def _changes(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What stands in place of an entry's own values; prompt attacks have neither steps nor a rate to sweep."""
        changes: dict[str, Any] = {"seeds": list(self.seeds)}
        if entry.get("kind") not in PROMPT_KINDS:
            changes |= {"steps": [step for step in self.steps if step], "lr": list(self.rates)}
        return {key: value for key, value in changes.items() if value}


def _file(name: str, recipe: Recipe) -> dict[str, Any]:
    """An entry that starts from an attack file, if there is one."""
    try:
        return read_attack(name, recipe.attack_settings)
    except RecipeError as error:
        if isinstance(error, NoSuchFile):
            own = ", ".join(recipe.attacks) or "none"
            raise RecipeError(f"There is no attack '{name}'; the recipe has {own}; {error.others}.") from None
        raise
