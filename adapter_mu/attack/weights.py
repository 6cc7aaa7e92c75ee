"""Finetunes of the UNet's own weights: all of them, or cross attention alone."""

from __future__ import annotations

import copy

import torch
from torch import nn

from adapter_mu.attack.trained import Trained
from adapter_mu.models import LoadedModel, with_unet
from adapter_mu.params.subsets import select

SUBSET_OF_KIND = {"full": "full", "dreambooth": "full", "cross_attention": "cross_attention"}


def train_weights(model: LoadedModel, subset: str) -> Trained:
    """A copy of the UNet in fp32, of which the weights of `subset` are trained."""
    unet = copy.deepcopy(model.unet).float()
    chosen = list(select(unet, subset).values())
    for weight in chosen:
        weight.requires_grad_(True)
    attacked = with_unet(model, unet)
    return Trained(chosen, attacked, lambda: attacked if model.dtype == torch.float32 else _cast(model, unet))


def _cast(model: LoadedModel, unet: nn.Module) -> LoadedModel:
    """The attacked weights in the dtype of the model's other parts, as its attacker would use them."""
    cast = copy.deepcopy(model.unet)
    cast.load_state_dict(unet.state_dict())
    return with_unet(model, cast)
