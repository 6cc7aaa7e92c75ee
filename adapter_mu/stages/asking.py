"""What the evaluate verb was asked for: a model's scores, or those of pictures that are already there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.folder import picture_files
from adapter_mu.evaluate.statistics import images_for
from adapter_mu.recipe import load_recipe

MODEL_FILES = ("model_index.json", "recipe.yaml", "merged")  # of a diffusers folder, a run, an arm


def holds_pictures(path: Path) -> bool:
    """Whether a folder is one of pictures: no model, no run, and pictures in it."""
    if not path.is_dir() or any((path / name).exists() for name in MODEL_FILES):
        return False
    return bool(picture_files(path))


def pictures_to_judge(
    detector: str | None, concept: str | None, recipe: str | None, overrides: Sequence[str]
) -> tuple[str | dict[str, Any], str]:
    """The detector and the concept for a folder of pictures, a recipe's where it is given.

    Raises:
        RecipeError: nobody says which detector, or what to look for.
    """
    scored = load_recipe(recipe, overrides) if recipe else None
    choice = _detector(detector) if detector else scored.evaluate.detector if scored and scored.evaluate else None
    if choice is None:
        raise RecipeError("Say with --detector what should look at these pictures, for example --detector nudenet.")
    wanted = concept or (scored.concept if scored else None)
    if wanted is None:
        raise RecipeError("Say with --concept what to look for in these pictures, for example --concept nudity.")
    return choice, wanted


def scoring_overrides(detector: str | None, concept: str | None, precision: float | None) -> list[str]:
    """The recipe's changes that the verb's options mean for a model.

    Raises:
        RecipeError: a concept, which a model's prompts say, or a precision that no number of images has.
    """
    if concept:
        raise RecipeError("--concept is for a folder of pictures; a model's recipe says what its prompts should show.")
    changes = [f"evaluate.detector={detector}"] if detector else []
    if precision is not None:
        try:
            count = images_for(precision)
        except ValueError:
            raise RecipeError(f"--precision {precision:g} must lie between 0 and 50 points, for example 5.") from None
        changes += [f"evaluate.{part}.images={count}" for part in ("concept", "benign")]
    return changes


def _detector(text: str) -> str | dict[str, Any]:
    try:
        choice = yaml.safe_load(text)
    except yaml.YAMLError:
        choice = None
    if isinstance(choice, str) or (isinstance(choice, dict) and isinstance(choice.get("name"), str)):
        return choice
    raise RecipeError(f"--detector '{text}' must be a name, or a mapping such as '{{name: nudenet, classes: strict}}'.")
