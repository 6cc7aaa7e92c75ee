"""What an attack is pointed at: a run, one arm of it, or a model that was made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Recipe, load_recipe

RECIPE_OF_BUILT_IN = {"shapes-sd": "shapes/demo", "shapes-sdxl": "shapes/sdxl"}


@dataclass(frozen=True)
class Victims:
    """Models by the name that tables call them, the recipe that says what to look for, and where results go."""

    models: dict[str, str]
    recipe: Recipe
    folder: Path


def find_victims(
    model: str,
    recipe: str | None,
    overrides: Sequence[str],
    name: str | None,
    out: Path | None,
    verb: str = "attack",
) -> Victims:
    """A run's folder means all its arms, an arm's folder that arm; both know their recipe and take the results.

    Raises:
        RecipeError: nobody says what to look for in the model's pictures, or a run's recipe is to be changed in place.
    """
    run, models = _in_run(Path(model))
    if name and len(models) > 1:
        raise RecipeError(f"'{model}' is a run with {len(models)} arms; --name is for one model, so leave it out.")
    if models and name:
        models = dict(zip([name], models.values(), strict=True))
    if run and recipe is None:
        if overrides and out in (None, run):
            raise RecipeError("A run's own folder keeps its recipe; say with --out where results of a changed one go.")
        return Victims(models, load_recipe(str(run / "recipe.yaml"), overrides), out or run)
    recipe = recipe or RECIPE_OF_BUILT_IN.get(model)
    if recipe is None:
        raise RecipeError(
            f"'{model}' is no run of adapter-mu; name with --recipe what to look for in its pictures (adapter-mu ls)."
        )
    own = name or ("model" if out else Path(model).stem)
    return Victims(models or {own: model}, load_recipe(recipe, overrides), out or Path("runs") / f"{verb}-{own}")


def _in_run(path: Path) -> tuple[Path | None, dict[str, str]]:
    """The run that `path` belongs to, and which of its merged models are meant; none when it belongs to none."""
    if (path / "recipe.yaml").is_file() and (path / "arms").is_dir():
        arms = sorted(arm for arm in (path / "arms").iterdir() if (arm / "merged").is_dir())
        if not arms:
            raise RecipeError(f"The run {path} has no finished arm yet; `adapter-mu run` it first.")
        return path, {arm.name: str(arm / "merged") for arm in arms}
    arm = path.parent if path.name == "merged" else path
    run = arm.parent.parent
    if (arm / "merged").is_dir() and arm.parent.name == "arms" and (run / "recipe.yaml").is_file():
        return run, {arm.name: str(arm / "merged")}
    return None, {}
