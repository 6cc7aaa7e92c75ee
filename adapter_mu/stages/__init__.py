"""The stages of a run in order, each resumable, each leaving files in the run's folder."""

from adapter_mu.stages.asking import holds_pictures, pictures_to_judge, scoring_overrides
from adapter_mu.stages.attacking import attack_arm
from adapter_mu.stages.check import (
    arms,
    check_attacks_fit,
    check_fit,
    check_names,
    check_pictures,
    check_recipe,
    check_scoring,
    validate,
)
from adapter_mu.stages.claim import claim, environment, holds
from adapter_mu.stages.parallel import share_of_threads, side_by_side
from adapter_mu.stages.products import training_device
from adapter_mu.stages.prompting import prompt_success_rates, searches_done
from adapter_mu.stages.provenance import command, provenance
from adapter_mu.stages.quality import quality_done, quality_items, quality_of_arm
from adapter_mu.stages.scoring import Scores
from adapter_mu.stages.setting import BASE, BEFORE, DTYPES, Run, load_base, numbered, open_run, pick_device, say
from adapter_mu.stages.starting import ADAPTER, EDIT, ON_TOP_OF, made
from adapter_mu.stages.training import train_arm
from adapter_mu.stages.victims import RECIPE_OF_BUILT_IN, Victims, find_victims

__all__ = [
    "ADAPTER",
    "BASE",
    "BEFORE",
    "DTYPES",
    "EDIT",
    "ON_TOP_OF",
    "RECIPE_OF_BUILT_IN",
    "Run",
    "Scores",
    "Victims",
    "arms",
    "attack_arm",
    "check_attacks_fit",
    "check_fit",
    "check_names",
    "check_pictures",
    "check_recipe",
    "check_scoring",
    "claim",
    "command",
    "environment",
    "find_victims",
    "holds",
    "holds_pictures",
    "load_base",
    "made",
    "numbered",
    "open_run",
    "pick_device",
    "pictures_to_judge",
    "prompt_success_rates",
    "provenance",
    "quality_done",
    "quality_items",
    "quality_of_arm",
    "say",
    "scoring_overrides",
    "searches_done",
    "share_of_threads",
    "side_by_side",
    "train_arm",
    "training_device",
    "validate",
]
