"""The optimizers an attack may use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from adapter_mu.recipe import Attack


def new_optimizer(attack: Attack, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, bitsandbytes' 8-bit AdamW, or SGD with momentum."""
    decay = attack.weight_decay
    if attack.optimizer == "sgd":
        return torch.optim.SGD(parameters, attack.lr, momentum=attack.momentum, weight_decay=decay)
    if attack.optimizer == "adamw":
        return torch.optim.AdamW(parameters, attack.lr, weight_decay=decay)
    from bitsandbytes.optim import AdamW8bit

    eight_bit: torch.optim.Optimizer = AdamW8bit(parameters, lr=attack.lr, weight_decay=decay)
    return eight_bit
