"""Hessian-vector products of a scalar loss over a dictionary of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.meta.pair_checkpoint import PairCheckpoint, announced_calls
from adapter_mu.meta.tensors import Params, ScalarLoss, as_leaves, norm, value_and_gradient

Product: TypeAlias = Callable[[ScalarLoss, Params, Params], tuple[Params, Params | None]]


def _zeros(like: Params) -> Params:
    return {name: torch.zeros_like(tensor) for name, tensor in like.items()}


def reverse_over_reverse(loss_fn: ScalarLoss, params: Params, vector: Params) -> tuple[Params, Params | None]:
    """Exact: differentiate the gradient's inner product with the vector (double backward).

    Costs about three gradients and holds the graph of a whole gradient; every operation of the loss must be twice
    differentiable, which fused attention is not.
    """
    leaves = as_leaves(params)
    with torch.enable_grad():
        loss = loss_fn(leaves)
        if not loss.requires_grad:
            return _zeros(vector), _zeros(params)
        found = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
    gradient = dict(zip(leaves, found, strict=True))
    curved = [name for name, entry in gradient.items() if entry.requires_grad]  # the rest are constants
    if not curved:
        return _zeros(vector), gradient
    second = torch.autograd.grad(
        [gradient[name] for name in curved],
        list(leaves.values()),
        grad_outputs=[vector[name].to(gradient[name].dtype) for name in curved],
        allow_unused=True,
        materialize_grads=True,
    )
    result = {name: entry.to(vector[name].dtype) for name, entry in zip(leaves, second, strict=True)}
    return result, {name: entry.detach() for name, entry in gradient.items()}


def finite_difference(loss_fn: ScalarLoss, params: Params, vector: Params) -> tuple[Params, Params | None]:
    """Approximate: (g(theta + h v) - g(theta - h v)) / 2h, two plain gradients and the memory of one.

    h = u^(1/3) (1 + |theta|) / |v| with u the unit of the parameters' dtype: for central differences u^(1/3) balances
    the truncation error (~h^2) against rounding (~u/h); see Nocedal & Wright, Numerical Optimization, section 8.1.
    Expect about 1e-6 relative error in float64 and 1e-2 in float32. A base in bfloat16 rounds its gradients more
    coarsely than theta's dtype tells, so this is a cross-check there, not an engine. The gradient at theta itself is
    never computed, hence None.
    """
    length = norm(vector)
    if length == 0:
        return _zeros(vector), None
    unit = max(torch.finfo(tensor.dtype).eps for tensor in params.values())
    step = unit ** (1 / 3) * (1 + norm(params)) / length

    def gradient_at(signed: float) -> Params:
        moved = {n: torch.add(p.detach(), vector[n].to(p.dtype), alpha=signed) for n, p in params.items()}
        return value_and_gradient(loss_fn, moved)[1]

    ahead, behind = gradient_at(step), gradient_at(-step)
    return {n: ((ahead[n] - behind[n]) / (2 * step)).to(vector[n].dtype) for n in params}, None


class _Announced(Exception):
    """The loss goes through announced blocks."""


def automatic(
    loss_fn: ScalarLoss, params: Params, vector: Params, chunk: int | None = None
) -> tuple[Params, Params | None]:
    """`pair_checkpoint` for a loss that calls announced blocks (see `pair_block`), else `reverse_over_reverse`."""

    def watched(leaves: Params) -> Tensor:
        before = announced_calls()
        loss = loss_fn(leaves)
        if announced_calls() != before:
            raise _Announced
        return loss

    try:
        return reverse_over_reverse(watched, params, vector)
    except _Announced:
        return resolve("pair_checkpoint", chunk)(loss_fn, params, vector)


PRODUCTS: dict[str, Product] = {
    "reverse_over_reverse": reverse_over_reverse,
    "pair_checkpoint": PairCheckpoint(),
    "finite_difference": finite_difference,
}


def resolve(name: str, chunk: int | None = None) -> Product:
    """The product of that name, or `automatic` for "auto"; UserError for an unknown name.

    `chunk`: query rows of attention at a time, where pairs make the product.
    """
    if name == "auto":
        return partial(automatic, chunk=chunk)
    if name not in PRODUCTS:
        raise UserError(f"hvp: there is no {name!r}; choose one of auto, {', '.join(PRODUCTS)}")
    return PairCheckpoint(chunk) if name == "pair_checkpoint" and chunk is not None else PRODUCTS[name]


def product(name: str, loss_fn: ScalarLoss, params: Params, vector: Params) -> tuple[Params, Params | None]:
    """The Hessian of `loss_fn` at `params` times `vector`, and the gradient where the method yields it for free.

    Args:
        name: "auto" or a key of `PRODUCTS`.
        loss_fn: a deterministic function from parameters to one number; parameters it does not touch count as zero.
        params: where; any shapes, floating point. Left as they are.
        vector: same names and shapes as `params`; the product comes back in its dtypes.

    Raises:
        UserError: unknown method, or `vector` has other names or shapes than `params`.
    """
    method = resolve(name)
    if {n: t.shape for n, t in params.items()} != {n: t.shape for n, t in vector.items()}:
        raise UserError("hvp: the vector must have the names and shapes of the parameters")
    return method(loss_fn, params, vector)
