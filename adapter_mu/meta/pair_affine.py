"""Linear layers and convolutions on pairs: value and tangent go through the weight in one call where that pays.

y = W x + b and ydot = W xdot + Wdot x + bdot. A frozen weight (no Wdot) has xdot treated as x is, so nothing is kept;
a small batch is limited by reading the weight, which is then read once for both halves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from adapter_mu.meta.pairs import join, run_function, split


@dataclass(frozen=True)
class Layer:
    """A bilinear map of (x, weight) and its derivatives."""

    apply: Callable[[Tensor, Tensor], Tensor]
    to_input: Callable[[torch.Size, Tensor, Tensor], Tensor]
    """(shape of x, weight, cotangent) -> cotangent of x"""
    to_weight: Callable[[Tensor, torch.Size, Tensor], Tensor]
    """(x, shape of weight, cotangent) -> cotangent of the weight"""


def _linear_weight(x: Tensor, _: torch.Size, bar: Tensor) -> Tensor:
    return bar.flatten(0, -2).t() @ x.flatten(0, -2)


LINEAR = Layer(F.linear, lambda _, weight, bar: bar @ weight, _linear_weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` on pairs."""
    return F.linear(x, weight, bias) if x.dim() < 2 else _affine(LINEAR, x, weight, bias, -1)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` on pairs."""
    if isinstance(padding, str) or x.dim() != 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    where: tuple[Any, ...] = (stride, padding, dilation, groups)
    layer = Layer(
        lambda x, weight: F.conv2d(x, weight, None, *where),
        lambda shape, weight, bar: conv2d_input(shape, weight, bar, *where),  # type: ignore[no-untyped-call]
        lambda x, shape, bar: conv2d_weight(x, shape, bar, *where),  # type: ignore[no-untyped-call]
    )
    return _affine(layer, x, weight, bias, 1)


def _affine(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    (x, xdot), (weight, weight_dot) = split(x), split(weight)
    if xdot is None:
        y, ydot = layer.apply(x, weight), None if weight_dot is None else layer.apply(x, weight_dot)
    else:
        y, ydot = run_function(_Affine, x, xdot, weight, weight_dot, layer)
    if bias is not None:
        shape = [1] * y.dim()
        shape[channels] = -1
        bias, bias_dot = split(bias)
        y = y + bias.to(y.dtype).view(shape)
        if bias_dot is not None:
            change = bias_dot.to(y.dtype).view(shape)
            ydot = change.expand_as(y) if ydot is None else ydot + change
    return join(y, ydot)


def _together(layer: Layer, x: Tensor, xdot: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The layer on both halves."""
    if x.numel() > weight.numel():  # not limited by the weight: spare the copy
        return layer.apply(x, weight), layer.apply(xdot, weight)
    # The halves may be changed in place later, so they must not be tracked as views.
    y, ydot = torch.unsafe_chunk(layer.apply(torch.cat([x, xdot]), weight), 2)
    return y, ydot


class _Affine(torch.autograd.Function):
    """(x, xdot, W, Wdot or None, layer) -> W x, W xdot + Wdot x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, xdot: Tensor, weight: Tensor, weight_dot: Tensor | None, layer: Layer
    ) -> tuple[Tensor, Tensor]:
        """X and xdot are kept only for a weight that is trained, x for a tangent that depends on what is (LoRA's)."""
        y, ydot = _together(layer, x, xdot, weight)
        if weight_dot is not None:
            ydot += layer.apply(x, weight_dot)
        trained, tangent_too = ctx.needs_input_grad[2:4]
        ctx.save_for_backward(weight, weight_dot, x if trained or tangent_too else None, xdot if trained else None)
        ctx.facts = layer, x.shape, x.dtype
        return y, ydot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor, ydot_bar: Tensor) -> tuple[Tensor | None, ...]:
        """Transposes of the forward pass.

        x_bar = W^T y_bar + Wdot^T ydot_bar, xdot_bar = W^T ydot_bar, W_bar = y_bar x^T + ydot_bar xdot^T and
        Wdot_bar = ydot_bar x^T.
        """
        weight, weight_dot, x, xdot = ctx.saved_tensors
        layer, shape, dtype = ctx.facts
        fitted = weight.to(y_bar.dtype)  # autocast has cast it in forward, too
        if shape.numel() > weight.numel():
            x_bar, xdot_bar = (layer.to_input(shape, fitted, bar) for bar in (y_bar, ydot_bar))
        else:
            both = torch.Size((2 * shape[0], *shape[1:]))
            x_bar, xdot_bar = layer.to_input(both, fitted, torch.cat([y_bar, ydot_bar])).chunk(2)
        if weight_dot is not None:
            x_bar = x_bar + layer.to_input(shape, weight_dot.to(y_bar.dtype), ydot_bar)
        weight_bar = weight_dot_bar = None
        if x is not None and ctx.needs_input_grad[2]:
            weight_bar = layer.to_weight(x.to(y_bar.dtype), weight.shape, y_bar)
            weight_bar += layer.to_weight(xdot.to(y_bar.dtype), weight.shape, ydot_bar)
            weight_bar = weight_bar.to(weight.dtype)
        if x is not None and ctx.needs_input_grad[3]:
            weight_dot_bar = layer.to_weight(x.to(y_bar.dtype), weight.shape, ydot_bar).to(weight.dtype)
        return x_bar.to(dtype), xdot_bar.to(dtype), weight_bar, weight_dot_bar, None
