"""The stages of a run in order, each resumable, each leaving files in the run's folder."""

from adapter_mu.stages.attacking import attack_arm
from adapter_mu.stages.check import arms, check_fit, check_names, check_pictures, check_recipe, check_scoring, validate
from adapter_mu.stages.claim import claim, environment, holds
from adapter_mu.stages.parallel import share_of_threads, side_by_side
from adapter_mu.stages.scoring import Scores
from adapter_mu.stages.setting import BASE, BEFORE, DTYPES, Run, load_base, numbered, open_run, pick_device, say
from adapter_mu.stages.training import train_arm

__all__ = [
    "BASE",
    "BEFORE",
    "DTYPES",
    "Run",
    "Scores",
    "arms",
    "attack_arm",
    "check_fit",
    "check_names",
    "check_pictures",
    "check_recipe",
    "check_scoring",
    "claim",
    "environment",
    "holds",
    "load_base",
    "numbered",
    "open_run",
    "pick_device",
    "say",
    "share_of_threads",
    "side_by_side",
    "train_arm",
    "validate",
]
