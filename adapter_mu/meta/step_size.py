"""An attacker's step size that does not overshoot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.meta.adjoint import InnerLoss
from adapter_mu.meta.tensors import value_and_gradient


def backtracked_lr(
    inner_loss: InnerLoss,
    params: Mapping[str, Tensor],
    batch: Any,
    lr: float,
    *,
    required_drop: float = 0.12,
    max_halvings: int = 4,
) -> float:
    """Halve `lr` until one SGD step lowers the inner loss on its own batch by `required_drop`; else the best tried.

    Without this, an exact meta gradient learns to raise the curvature along a fixed step, so that the simulated
    attacker overshoots while a real one, with smaller steps, does not. The result is a plain number: it counts as a
    constant when the attack is differentiated. Costs one gradient and at most `max_halvings` + 1 forward passes.

    Args:
        inner_loss: (params, batch) -> one number, the attacker's loss.
        params: where the attack begins; not changed.
        batch: the attacker's first batch.
        lr: the largest step size to try, > 0.
        required_drop: share of the loss to lose, in [0, 1).
        max_halvings: how often to halve, >= 0.

    Raises:
        UserError: an argument outside its range.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"the attacker's learning rate is {lr}: choose a number > 0")
    if not (0 <= required_drop < 1 and max_halvings >= 0):
        raise UserError("backtracking needs a required_drop in [0, 1) and max_halvings >= 0")
    before, gradient = value_and_gradient(lambda p: inner_loss(p, batch), params)
    tried: dict[float, float] = {}
    for halvings in range(max_halvings + 1):
        size = lr * 0.5**halvings
        with torch.no_grad():
            after = float(inner_loss({n: p.detach() - size * gradient[n] for n, p in params.items()}, batch))
        if before - after >= required_drop * abs(before):
            return size
        tried[size] = after if math.isfinite(after) else math.inf
    # Ties, above all "nothing finite", go to the smallest step.
    return min(reversed(tried), key=lambda size: tried[size])
