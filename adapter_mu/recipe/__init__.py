"""The typed recipe: one YAML file that says base, data, method, meta objective, attacks and scores."""

from adapter_mu.recipe.attack import AnyAttack, Attack
from adapter_mu.recipe.attack_files import attack_names, complete, read_attack, read_suite
from adapter_mu.recipe.base import Base
from adapter_mu.recipe.choosing import Asked
from adapter_mu.recipe.data import Data, Prompts, Sampler, Swap, every_prompts
from adapter_mu.recipe.evaluate import Evaluate, Quality
from adapter_mu.recipe.loading import load_recipe, recipe_names, recipe_path
from adapter_mu.recipe.merging import merged
from adapter_mu.recipe.prompt_attack import PROMPT_KINDS, PromptAttack
from adapter_mu.recipe.recipe import Recipe, parse
from adapter_mu.recipe.strict import Strict
from adapter_mu.recipe.training import Adapter, Attacker, Memory, Meta, Method, Train
from adapter_mu.recipe.yaml_files import recipe_folder

__all__ = [
    "PROMPT_KINDS",
    "Adapter",
    "AnyAttack",
    "Asked",
    "Attack",
    "Attacker",
    "Base",
    "Data",
    "Evaluate",
    "Memory",
    "Meta",
    "Method",
    "PromptAttack",
    "Prompts",
    "Quality",
    "Recipe",
    "Sampler",
    "Strict",
    "Swap",
    "Train",
    "attack_names",
    "complete",
    "every_prompts",
    "load_recipe",
    "merged",
    "parse",
    "read_attack",
    "read_suite",
    "recipe_folder",
    "recipe_names",
    "recipe_path",
]
