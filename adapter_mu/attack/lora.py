"""A LoRA beside frozen weights, made by peft as diffusers' training scripts make it."""

from __future__ import annotations

import copy

import torch

from adapter_mu.attack.trained import Trained
from adapter_mu.data.seeds import generator_for
from adapter_mu.models import LoadedModel, copy_unet, with_unet
from adapter_mu.recipe import Attack


def train_lora(model: LoadedModel, attack: Attack, seed: int) -> Trained:
    """fp32 factors on the layers whose names end in `attack.targets`; A is drawn by `seed`, B starts at zero.

    The base keeps its dtype, but for fp16, in which small gradients vanish: that is trained in fp32, published in fp16.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    half = model.dtype == torch.float16
    unet = copy.deepcopy(model.unet).float() if half else copy_unet(model.unet, ())
    config = LoraConfig(
        r=attack.rank,
        lora_alpha=attack.alpha or attack.rank,
        init_lora_weights="gaussian",
        target_modules=list(attack.targets),
    )
    with torch.random.fork_rng():  # peft draws from the global generator
        torch.manual_seed(generator_for(seed, "lora").initial_seed())
        unet.add_adapter(config)
    cast_training_params(unet, torch.float32)
    attacked = with_unet(model, unet)
    factors = [weight for weight in unet.parameters() if weight.requires_grad]
    return Trained(factors, attacked, lambda: with_unet(model, copy.deepcopy(unet).half()) if half else attacked)
