"""Normalisation, softmax, silu and gelu on pairs, with their derivatives in closed form.

Each maps (x, xdot) to (y, ydot) with ydot = J(x) xdot and keeps only its inputs (softmax: its result). Their backward
passes are never differentiated again. Arithmetic is in float32 or finer, a few megabytes at a time.

Bars denote cotangents; for a symmetric J both x and xdot receive J applied to a cotangent, and x besides the
derivative of phi = <ydot_bar, J(x) xdot> with xdot and ydot_bar held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements that are worked on at once: 16 MiB in float32.
PORTION = 2**22
Pair = tuple[Tensor, Tensor]


def by_rows(work: Callable[..., Pair], length: int, tensors: tuple[Tensor | None, ...], like: Tensor) -> Pair:
    """Apply `work` to portions of the tensors seen as rows of `length`, in float32 or finer; two results as `like`."""
    fine = torch.promote_types(like.dtype, torch.float32)
    rows = [None if t is None else t.reshape(-1, length) for t in tensors]
    step = max(1, PORTION // length)
    if like.numel() <= step * length:
        first, second = work(*(None if r is None else r.to(fine) for r in rows))
        return first.to(like.dtype).reshape(like.shape), second.to(like.dtype).reshape(like.shape)
    results = [torch.empty(like.numel() // length, length, dtype=like.dtype, device=like.device) for _ in range(2)]
    for start in range(0, len(results[0]), step):
        portion = slice(start, start + step)
        parts = work(*(None if r is None else r[portion].to(fine) for r in rows))
        for whole, part in zip(results, parts, strict=True):
            whole[portion] = part
    return results[0].reshape(like.shape), results[1].reshape(like.shape)


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def _normalized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """H = (x - mean) r and r = (variance + eps)^(-1/2)."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    r = torch.rsqrt(variance + eps)
    return (x - mean) * r, r


def _normalize_forward(x: Tensor, xdot: Tensor, eps: float) -> Pair:
    """J = r (C - h h^T / n) with C the centering."""
    h, r = _normalized(x, eps)
    a = xdot - _mean(xdot)
    return h, (a - h * _mean(h * a)) * r


def _normalize_backward(x: Tensor, xdot: Tensor, y_bar: Tensor | None, ydot_bar: Tensor | None, eps: float) -> Pair:
    """x_bar = J y_bar - r^2 (q a + p b + h (s - 3 p q)), from dr = -r^2 h . dx / n and dh = J dx.

    Here a, b are the centered xdot, ydot_bar, and p = mean(h a), q = mean(h b), s = mean(a b).
    """
    h, r = _normalized(x, eps)
    x_bar = torch.zeros_like(x) if y_bar is None else (y_bar - _mean(y_bar) - h * _mean(h * y_bar)) * r
    if ydot_bar is None:
        return x_bar, torch.zeros_like(x)
    a, b = xdot - _mean(xdot), ydot_bar - _mean(ydot_bar)
    p, q, s = _mean(h * a), _mean(h * b), _mean(a * b)
    xdot_bar = (b - h * q) * r
    bend = h * (s - 3 * p * q)
    bend.addcmul_(a, q).addcmul_(b, p)
    return x_bar.addcmul_(bend, r * r, value=-1), xdot_bar


class Normalize(torch.autograd.Function):
    """(x, xdot, length of a row, eps) -> normalised rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, xdot: Tensor, length: int, eps: float) -> Pair:
        """See `_normalize_forward`."""
        ctx.save_for_backward(x, xdot)
        ctx.set_materialize_grads(False)
        ctx.settings = length, eps
        return by_rows(partial(_normalize_forward, eps=eps), length, (x, xdot), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor | None, ydot_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        """See `_normalize_backward`."""
        (x, xdot), (length, eps) = ctx.saved_tensors, ctx.settings
        bars = by_rows(partial(_normalize_backward, eps=eps), length, (x, xdot, y_bar, ydot_bar), x)
        return *bars, None, None


class Softmax(torch.autograd.Function):
    """(x, xdot, dim) -> P = softmax(x) and P (xdot - <P, xdot>)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, xdot: Tensor, dim: int) -> Pair:
        """The result is kept, not x."""
        y = torch.softmax(x, dim)
        xdot = xdot.to(y.dtype)  # autocast may have chosen a finer one
        ctx.save_for_backward(y, xdot)
        ctx.set_materialize_grads(False)
        ctx.dim = dim
        return y, y * (xdot - (y * xdot).sum(dim, keepdim=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor | None, ydot_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        """With c = <P, ydot_bar>: xdot_bar = P (ydot_bar - c); see `softmax_bars`."""
        (y, xdot), dim = ctx.saved_tensors, ctx.dim
        return *softmax_bars(y, xdot, y_bar, ydot_bar, dim), None


def softmax_bars(
    y: Tensor, xdot: Tensor | None, y_bar: Tensor | None, ydot_bar: Tensor | None, dim: int = -1
) -> tuple[Tensor | None, Tensor | None]:
    """Cotangents of (x, xdot) for softmax, from those of (P, Pdot); `y_bar` is overwritten.

    Pdot_i = P_i (xdot_i - <P, xdot>) sends to P: ydot_bar (xdot - <P, xdot>) - c xdot, with c = <P, ydot_bar>.
    """
    xdot_bar = None
    if xdot is not None and ydot_bar is not None:
        c = (y * ydot_bar).sum(dim, keepdim=True)
        total = ydot_bar * (xdot - (y * xdot).sum(dim, keepdim=True))
        total.addcmul_(c, xdot, value=-1)
        y_bar = total if y_bar is None else total.add_(y_bar)
        xdot_bar = (ydot_bar - c).mul_(y)
    if y_bar is None:
        return None, None
    return (y_bar - (y * y_bar).sum(dim, keepdim=True)).mul_(y), xdot_bar


def _silu_bend(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _gelu_bend(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * (2 - x * x) * (1 / math.sqrt(2 * math.pi))


class _Pointwise(torch.autograd.Function):
    """(x, xdot) -> f(x), f'(x) xdot; the subclasses say what f, f' times something, and f'' are."""

    value: Callable[[Tensor], Tensor]
    slope_times: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]

    @classmethod
    def run(cls, ctx: Any, x: Tensor, xdot: Tensor) -> Pair:
        """Forward, by PyTorch's own kernels."""
        ctx.save_for_backward(x, xdot)
        ctx.set_materialize_grads(False)
        return cls.value(x), cls.slope_times(xdot, x)

    @classmethod
    def bars(cls, ctx: Any, y_bar: Tensor | None, ydot_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        """x_bar = f' y_bar + f'' xdot ydot_bar and xdot_bar = f' ydot_bar."""
        x, xdot = ctx.saved_tensors
        if ydot_bar is None:
            return (None if y_bar is None else cls.slope_times(y_bar, x)), None

        def work(x: Tensor, xdot: Tensor, y_bar: Tensor | None, ydot_bar: Tensor) -> Pair:
            x_bar = cls.bend(x).mul_(xdot).mul_(ydot_bar)
            return x_bar if y_bar is None else x_bar.add_(cls.slope_times(y_bar, x)), cls.slope_times(ydot_bar, x)

        return by_rows(work, x.shape[-1], (x, xdot, y_bar, ydot_bar), x)


class Silu(_Pointwise):
    """f = x sigmoid(x)."""

    value = staticmethod(F.silu)
    slope_times = staticmethod(torch.ops.aten.silu_backward)
    bend = staticmethod(_silu_bend)

    @staticmethod
    def forward(ctx: Any, x: Tensor, xdot: Tensor) -> Pair:
        """See `_Pointwise`."""
        return Silu.run(ctx, x, xdot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor | None, ydot_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        """See `_Pointwise`."""
        return Silu.bars(ctx, y_bar, ydot_bar)


class Gelu(_Pointwise):
    """f = x Phi(x)."""

    value = staticmethod(F.gelu)
    slope_times = staticmethod(torch.ops.aten.gelu_backward)
    bend = staticmethod(_gelu_bend)

    @staticmethod
    def forward(ctx: Any, x: Tensor, xdot: Tensor) -> Pair:
        """See `_Pointwise`."""
        return Gelu.run(ctx, x, xdot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor | None, ydot_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        """See `_Pointwise`."""
        return Gelu.bars(ctx, y_bar, ydot_bar)
