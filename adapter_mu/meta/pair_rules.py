"""What an operation does to pairs (x, xdot) where PyTorch's own forward derivative is wrong, forbidden or wasteful.

A pair travels as a dual tensor of `torch.autograd.forward_ad`; most operations carry it correctly, and the tangent can
then be differentiated in reverse. Four kinds do not, and get a rule here:

- layer_norm: its forward derivative treats mean and deviation as constants under reverse mode: wrong, without an error;
- softmax: its forward derivative works in place on what reverse mode has saved: an error;
- fused attention: has no forward derivative at all;
- a number times a pair: copies both halves once too often; group_norm, silu and gelu keep intermediate results alive.

Besides, PyTorch lets tangents pass through `no_grad`, which for a gradient means "constant": `PairRules` drops them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from adapter_mu.meta.pair_affine import conv2d, linear
from adapter_mu.meta.pair_attention import pair_attention
from adapter_mu.meta.pair_functions import Gelu, Normalize, Silu, Softmax
from adapter_mu.meta.pairs import join, run_function, split


def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalisation over the last dimensions, exact to second order."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    primal, tangent = split(x)
    if tangent is None:
        return _affine(F.layer_norm(primal, shape, None, None, eps), weight, bias)
    return _affine(join(*run_function(Normalize, primal, tangent, math.prod(shape), eps)), weight, bias)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalisation of channel groups, exact to second order; only x and xdot are kept for backward."""
    primal, tangent = split(x)
    shape = (-1,) + (1,) * (x.dim() - 2)
    weight, bias = (None if part is None else part.view(shape) for part in (weight, bias))
    if tangent is None:
        return _affine(F.group_norm(primal, num_groups, None, None, eps), weight, bias)
    return _affine(join(*run_function(Normalize, primal, tangent, x[0].numel() // num_groups, eps)), weight, bias)


def softmax(x: Tensor, dim: int = -1, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Softmax, exact to second order."""
    primal, tangent = split(x if dtype is None else x.to(dtype))
    return torch.softmax(primal, dim) if tangent is None else join(*run_function(Softmax, primal, tangent, dim))


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """X sigmoid(x); never in place, which would overwrite what backward needs."""
    primal, tangent = split(x)
    return F.silu(primal) if tangent is None else join(*run_function(Silu, primal, tangent))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit; the tanh approximation is left to PyTorch."""
    primal, tangent = split(x)
    if tangent is None or approximate != "none":
        return F.gelu(x, approximate=approximate)
    return join(*run_function(Gelu, primal, tangent))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def _by_number(operation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """`operation` between a pair and a Python number, half by half; anything else goes to PyTorch."""

    def rule(left: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs and isinstance(left, Tensor) and isinstance(right, Number):
            primal, tangent = split(left)
            if tangent is not None:
                return join(operation(primal, right), operation(tangent, right))
        return operation(left, right, *args, **kwargs)

    return rule


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    F.conv2d: conv2d,
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.softmax: softmax,
    torch.softmax: softmax,
    Tensor.softmax: softmax,
    F.silu: silu,
    F.gelu: gelu,
}
RULES |= {
    function: _by_number(function)
    for function in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__)
}


class PairRules(TorchFunctionMode):
    """Applies the rules while it is entered; `chunk`: query rows of attention at a time, see `pair_attention`."""

    def __init__(self, chunk: int | None) -> None:
        super().__init__()
        self.chunk = chunk

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` by its rule, or as it is."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            args, kwargs = tree_map_only(Tensor, _constant, (args, kwargs))
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return pair_attention(*args, **kwargs, chunk=self.chunk)
        return RULES.get(func, func)(*args, **kwargs)


def _constant(tensor: Tensor) -> Tensor:
    return split(tensor)[0]
