"""Slow and plain ways to the same numbers; nothing here uses `adapter_mu.meta`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from cases import Case, Params
from torch import Tensor

# From theta and every gradient so far (newest last) to the next theta, as one differentiable expression.
Rule = Callable[[list[Tensor], list[list[Tensor]]], list[Tensor]]


def sgd_rule(lr: float) -> Rule:
    return lambda theta, history: [p - lr * g for p, g in zip(theta, history[-1], strict=True)]


def momentum_rule(lr: float, momentum: float) -> Rule:
    def advance(theta: list[Tensor], history: list[list[Tensor]]) -> list[Tensor]:
        pasts = zip(*history, strict=True)
        return [p - lr * _weighted(past, momentum) for p, past in zip(theta, pasts, strict=True)]

    return advance


def adamw_rule(lr: float, beta1: float, beta2: float, eps: float, decay: float) -> Rule:
    """The bias-corrected moments are weighted averages of the gradients and of their squares."""

    def advance(theta: list[Tensor], history: list[list[Tensor]]) -> list[Tensor]:
        result = []
        for p, past in zip(theta, zip(*history, strict=True), strict=True):
            mean = _weighted(past, beta1) / _weighted([torch.ones_like(p)] * len(past), beta1)
            square = _weighted([g * g for g in past], beta2) / _weighted([torch.ones_like(p)] * len(past), beta2)
            # Where every gradient was exactly 0 (the columns of SDXL's crop offsets), autograd's sqrt would give nan.
            root = torch.where(square > 0, square, torch.ones_like(square)).sqrt() * (square > 0)
            result.append(p - lr * mean / (root + eps) - lr * decay * p)
        return result

    return advance


def _weighted(past: Sequence[Tensor], decay: float) -> Tensor:
    terms = [decay**age * entry for age, entry in enumerate(reversed(past))]
    return torch.stack(terms).sum(0)


def unrolled(
    case: Case, rule: Rule, *, constant_steps: int = 0, lift: Callable[[Params], Params] = dict
) -> tuple[Params, Params]:
    """Gradient by backpropagation through the whole attack, and the attacked parameters.

    The first `constant_steps` steps are cut off: the gradient is taken at the parameters that they lead to.
    With `lift`, the attack starts at lift(params) and the gradient is still with respect to params.
    """
    start = {name: tensor.detach().clone().requires_grad_() for name, tensor in case.params.items()}
    lifted = lift(start)
    names, leaves, theta = list(lifted), list(start.values()), list(lifted.values())
    history: list[list[Tensor]] = []
    for t, batch in enumerate(case.batches, start=1):
        loss = case.inner_loss(dict(zip(names, theta, strict=True)), batch)
        history.append(list(torch.autograd.grad(loss, theta, create_graph=True)))
        theta = rule(theta, history)
        if t <= constant_steps:
            history = [[g.detach() for g in gradients] for gradients in history]
            theta = leaves = [p.detach().requires_grad_() for p in theta]
    outer = case.outer_loss(dict(zip(names, theta, strict=True)))
    found = torch.autograd.grad(outer, leaves)
    return dict(zip(start, found, strict=True)), {n: p.detach() for n, p in zip(names, theta, strict=True)}


def dense_hessian(loss_fn: Callable[[Params], Tensor], params: Params) -> Tensor:
    """The whole matrix, over the concatenated tensors."""
    shapes = {name: tensor.shape for name, tensor in params.items()}

    def flat_loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        return loss_fn({name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)})

    return torch.autograd.functional.hessian(flat_loss, flat(params))


def flat(params: Params) -> Tensor:
    """All entries as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in params.values()])


def relative_error(found: Params, expected: Params) -> float:
    """Distance over length, all tensors as one vector."""
    assert found.keys() == expected.keys()
    return float((flat(found) - flat({n: expected[n] for n in found})).norm() / flat(expected).norm())
