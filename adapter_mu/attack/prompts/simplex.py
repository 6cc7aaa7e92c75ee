"""Distributions over tokens: staying one, and picking from one with a gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def project(points: Tensor) -> Tensor:
    """The nearest distribution to each point along the last dimension: argmin over p >= 0, sum p = 1 of |p - point|.

    Exact, by sorting (Held, Wolfe and Crowder 1974): p = max(point - shift, 0), where shift comes from the largest
    coordinates alone. UnlearnDiffAtk's code bisects for the same shift.
    """
    descending = points.sort(dim=-1, descending=True).values
    excess = descending.cumsum(-1) - 1
    counts = torch.arange(1, points.shape[-1] + 1, device=points.device)
    positive = (descending * counts > excess).sum(-1, keepdim=True)
    return (points - excess.gather(-1, positive - 1) / positive).clamp(min=0)


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row, drawn from its distribution, as one-hot vectors; the gradient passes straight through.

    The draw inverts the cumulative distribution at numbers from [0, 1), so that it does not depend on what else is in
    the batch, as `torch.multinomial`'s would. Backwards the gradient is clamped to [-1, 1] (UnlearnDiffAtk's hardtanh).

    Args:
        weights: rows of distributions over V tokens, (..., V).
        uniforms: (...,).
    """
    picked: Tensor = _Pick.apply(weights, uniforms)
    return picked


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, uniforms: Tensor) -> Tensor:
        # In float64: over CLIP's 49408 tokens a float32 sum would move small shares.
        shares = weights.double().cumsum(-1)
        aims = uniforms.double().unsqueeze(-1) * shares[..., -1:]
        # right=True: the first share above the aim, which is never one of weight zero.
        tokens = torch.searchsorted(shares, aims, right=True).squeeze(-1)
        return F.one_hot(tokens, weights.shape[-1]).to(weights.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return F.hardtanh(gradients[0]), None
