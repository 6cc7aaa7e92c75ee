"""Dictionaries of tensors treated as one vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from adapter_mu.errors import UserError

Params: TypeAlias = dict[str, Tensor]
ScalarLoss: TypeAlias = Callable[[Params], Tensor]


def as_leaves(params: Mapping[str, Tensor]) -> Params:
    """Copies of the references, cut from any graph, that gradients can be asked for."""
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            raise UserError(f"parameter {name!r} holds {tensor.dtype} values: pass only floating-point parameters")
    return {name: tensor.detach().requires_grad_(True) for name, tensor in params.items()}


def norm(params: Mapping[str, Tensor]) -> float:
    """Euclidean norm of the whole vector, summed in float64."""
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in params.values()))


def gradients_of(loss: Tensor, leaves: Params) -> Params:
    """Gradient of a scalar at `leaves`; zero for a leaf that the loss does not touch."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def value_and_gradient(loss_fn: ScalarLoss, params: Mapping[str, Tensor]) -> tuple[float, Params]:
    """A scalar loss and its gradient at `params`, without a graph left behind."""
    leaves = as_leaves(params)
    with torch.enable_grad():
        loss = loss_fn(leaves)
    if loss.numel() != 1:
        raise UserError(f"a loss must be one number, but it has shape {tuple(loss.shape)}: take its mean")
    return float(loss.detach()), gradients_of(loss, leaves)
