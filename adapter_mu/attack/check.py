"""What can be wrong with an attack is found before it starts."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from adapter_mu.attack.token import encoders_of, token_names
from adapter_mu.errors import RecipeError
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Attack


def check_attack(label: str, attack: Attack) -> None:
    """RecipeError when the attack has no steps, or needs a package that is not installed."""
    if not attack.steps or min(attack.steps) < 1:
        raise RecipeError(f"`attacks.{label}.steps` must list step counts of at least 1; correct it.")
    if len(set(attack.seeds)) < len(attack.seeds):
        raise RecipeError(f"`attacks.{label}.seeds` names a seed twice; remove one.")
    if attack.optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise RecipeError(f"Attack '{label}' uses adamw8bit: `pip install bitsandbytes`, or set optimizer: adamw.")
    if attack.attention == "xformers" and find_spec("xformers") is None:
        raise RecipeError(f"Attack '{label}' uses xformers: `pip install xformers`, or set attention: sdpa.")


def check_attack_fits(label: str, attack: Attack, model: LoadedModel) -> None:
    """RecipeError when the model lacks the layers a LoRA is for, or cannot learn the token."""
    if attack.kind == "lora":
        _check_targets(label, attack, model)
    if attack.kind == "textual_inversion":
        if model.dtype == torch.float16:
            raise RecipeError(f"Attack '{label}': a token's small gradients vanish in fp16; set base.dtype to bf16.")
        for suffix in encoders_of(model):
            known = getattr(model.pipeline, f"tokenizer{suffix}").get_vocab()
            if taken := [name for name in token_names(attack) if name in known]:
                raise RecipeError(f"Attack '{label}': the model already knows '{taken[0]}'; use another `placeholder`.")


def _check_targets(label: str, attack: Attack, model: LoadedModel) -> None:
    names = [f".{name}" for name, _ in model.unet.named_modules()]
    if missing := [end for end in attack.targets if not any(name.endswith(f".{end}") for name in names)]:
        raise RecipeError(f"Attack '{label}': no layer of the UNet ends in '{missing[0]}'; correct `targets`.")
