"""Frozen linear layers of foreign make, such as quantised ones, on pairs."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adapter_mu.meta.pairs import join, run_function, split

Dequantize = Callable[[nn.Module], Tensor]


def frozen_linear(layer: nn.Module, dequantize: Dequantize) -> None:
    """Teach one layer pairs: y as the layer computes it, ydot = W xdot with W = dequantize(layer), shape (out, in).

    W exists only while it is used. For a layer that also rounds its input (8-bit), this is the derivative that its
    own backward pass uses, which takes rounding for the identity. Outside products nothing changes; copies of the
    layer stay independent of it.
    """
    if getattr(layer, "pair_dequantize", None) is None:
        layer.forward = MethodType(_forward, layer)  # a bound method, so that a deep copy is bound to the copy
    layer.pair_dequantize = dequantize  # type: ignore[assignment]


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    primal, tangent = split(x)
    own = type(layer).forward
    if tangent is None:
        return own(layer, x, *args, **kwargs)
    return join(*run_function(_Frozen, primal, tangent, layer, lambda x: own(layer, x, *args, **kwargs)))


class _Frozen(torch.autograd.Function):
    """(x, xdot, layer, its own forward) -> y, W xdot; nothing but the layer is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, xdot: Tensor, layer: Any, own: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The tangent has no bias."""
        ctx.facts = layer, x.dtype
        y = own(x)
        return y, (xdot.to(y.dtype) @ layer.pair_dequantize(layer).to(y.dtype).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor, ydot_bar: Tensor) -> tuple[Tensor | None, ...]:
        """Both halves through W."""
        layer, dtype = ctx.facts
        weight = layer.pair_dequantize(layer).to(y_bar.dtype)
        return (y_bar @ weight).to(dtype), (ydot_bar @ weight).to(dtype), None, None
