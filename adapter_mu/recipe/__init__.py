"""The typed recipe: one YAML file that says base, data, method, meta objective, attacks and scores."""

from adapter_mu.recipe.attack import Attack
from adapter_mu.recipe.base import Base
from adapter_mu.recipe.data import Data, Prompts, Sampler
from adapter_mu.recipe.evaluate import Evaluate
from adapter_mu.recipe.loading import load_recipe, recipe_folder, recipe_names, recipe_path
from adapter_mu.recipe.recipe import Recipe, merged, parse
from adapter_mu.recipe.strict import Strict
from adapter_mu.recipe.training import Adapter, Attacker, Meta, Method, Train

__all__ = [
    "Adapter",
    "Attack",
    "Attacker",
    "Base",
    "Data",
    "Evaluate",
    "Meta",
    "Method",
    "Prompts",
    "Recipe",
    "Sampler",
    "Strict",
    "Train",
    "load_recipe",
    "merged",
    "parse",
    "recipe_folder",
    "recipe_names",
    "recipe_path",
]
