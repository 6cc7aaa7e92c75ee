"""The meta gradient: differentiating a loss at the attacker's result with respect to where the attack began."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.live import stage
from adapter_mu.meta.attacker import Attacker, State
from adapter_mu.meta.hvp import Product, finite_difference, resolve
from adapter_mu.meta.pair_checkpoint import announced_calls
from adapter_mu.meta.tensors import Params, ScalarLoss, norm, value_and_gradient

Order: TypeAlias = Literal["exact", "first_order"] | int
InnerLoss: TypeAlias = Callable[[Params, Any], Tensor]

# A replayed step may round differently on a GPU; noise drawn anew moves the loss and its gradient by far more.
REPLAY_TOLERANCE = 0.02


@dataclass(frozen=True)
class MetaGradient:
    """What one simulated attack teaches.

    Attributes:
        gradient: d outer_loss(theta_M) / d theta, names, shapes and dtypes of theta.
        attacked: theta_M, the attacker's result.
        inner_losses: the attacker's loss before each of its M steps.
        outer_loss: the outer loss at theta_M.
    """

    gradient: Params
    attacked: Params
    inner_losses: list[float]
    outer_loss: float


@dataclass(frozen=True)
class _Step:
    """What running one attacker step backwards needs; all of it as small as theta."""

    t: int
    batch: Any
    params: Params
    state: State
    gradients: Params | None
    gradient_norm: float
    loss: float


def meta_gradient(
    inner_loss: InnerLoss,
    outer_loss: ScalarLoss | Sequence[ScalarLoss],
    params: Mapping[str, Tensor],
    batches: Sequence[Any],
    *,
    attacker: Attacker,
    order: Order = "exact",
    hvp: str = "auto",
    chunk: int | None = None,
) -> MetaGradient:
    """Gradient of the meta objective through M attacker steps (eq. 2 of the paper; lines 7 to 10 of Algorithm 1).

    The attack is run forward keeping only theta_m and the optimizer's state, then backwards as an adjoint recursion:
    for SGD v_{m-1} = v_m - tau H_m v_m with v_M = grad outer_loss(theta_M). Each step back costs one Hessian-vector
    product, so memory does not grow with M beyond those small copies.

    Args:
        inner_loss: (params, batch) -> one number, the attacker's loss L_FT. It must give the same value whenever it is
            called with the same arguments: noise and timesteps belong in the batch, dropout must be off.
        outer_loss: params -> one number, evaluated at theta_M only; of several the sum counts, and each is
            differentiated by itself, in the memory of the largest.
        params: theta, floating-point tensors of any shapes; not changed. One that a loss does not touch gets zero.
        batches: one per attacker step; none at all makes theta_M = theta.
        attacker: SGD, Momentum or AdamW; its state starts afresh.
        order: "exact"; "first_order" (the gradient at theta_M as it is: FOMAML, the paper's public code); or k, exact
            through the last k steps and the identity before them.
        hvp: how to multiply by a Hessian, see `adapter_mu.meta.hvp`.
        chunk: of pair_checkpoint, query rows of attention at a time.

    Raises:
        UserError: bad `order` or `hvp`, a loss that is not one number, or an inner loss that does not repeat itself.
    """
    kept = _steps_kept(order, len(batches))
    multiply, announced = resolve(hvp, chunk), announced_calls()
    with stage("attacker"):
        attacked, trace, inner_losses = _attack(inner_loss, params, batches, attacker, kept)
    if hvp == "auto" and announced_calls() != announced:
        multiply = resolve("pair_checkpoint", chunk)  # known by now: saves `auto` its look
    with stage("outer loss"):
        outer_value, gradient = _sum_of([outer_loss] if callable(outer_loss) else outer_loss, attacked)
    with stage("product"):
        gradient = _pull_through(inner_loss, attacker, trace, gradient, multiply)
    return MetaGradient(gradient, attacked, inner_losses, outer_value)


def _steps_kept(order: Order, steps: int) -> int:
    if order == "exact":
        return steps
    if order == "first_order":
        return 0
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise UserError(f'order is {order!r}: choose "exact", "first_order" or a whole number of steps >= 0')
    return min(order, steps)


def _attack(
    inner_loss: InnerLoss, params: Mapping[str, Tensor], batches: Sequence[Any], attacker: Attacker, kept: int
) -> tuple[Params, list[_Step], list[float]]:
    """theta_M, the last `kept` steps, and the loss before each step."""
    theta = {name: tensor.detach() for name, tensor in params.items()}
    state = attacker.init(theta)
    trace: list[_Step] = []
    losses: list[float] = []
    for t, batch in enumerate(batches, start=1):
        loss, gradients = value_and_gradient(_on(inner_loss, batch), theta)
        losses.append(loss)
        if t > len(batches) - kept:
            remembered = gradients if attacker.vjp_needs_gradients else None
            trace.append(_Step(t, batch, theta, state, remembered, norm(gradients), loss))
        with torch.no_grad():
            theta, state = attacker.step(theta, gradients, state, t)
        del gradients  # not to be there beside the next ones
    return theta, trace, losses


def _sum_of(losses: Sequence[ScalarLoss], params: Params) -> tuple[float, Params]:
    """The sum of losses and its gradient."""
    value, gradient = value_and_gradient(losses[0], params)
    for loss in losses[1:]:
        more, further = value_and_gradient(loss, params)
        value += more
        for name in gradient:
            gradient[name] = gradient[name] + further.pop(name)
    return value, gradient


def _pull_through(
    inner_loss: InnerLoss, attacker: Attacker, trace: list[_Step], params_bar: Params, multiply: Product
) -> Params:
    """Run the kept steps backwards; empties `trace` so that each step's tensors are freed once used."""
    state_bar = attacker.init(params_bar)  # zeros: the outer loss does not look at the optimizer's state
    while trace:
        step = trace.pop()
        with torch.no_grad():
            params_bar, gradients_bar, state_bar = attacker.vjp(
                step.params, step.gradients, step.state, step.t, params_bar, state_bar
            )
        replay = _Replay(inner_loss, step.batch)
        curvature, replayed = multiply(replay, step.params, gradients_bar)
        if replayed is not None:
            _check_replay(step, "gradient norm", norm(replayed), step.gradient_norm)
        elif multiply is not finite_difference:  # that one looks beside the step's parameters
            _check_replay(step, "loss", replay.loss, step.loss)
        del step, gradients_bar, replayed
        for name in list(params_bar):  # one by one, so that no further copy of theta arises
            params_bar[name] = params_bar[name] + curvature.pop(name)
    return params_bar


def _on(inner_loss: InnerLoss, batch: Any) -> ScalarLoss:
    return lambda params: inner_loss(params, batch)


@dataclass
class _Replay:
    """A step's loss that remembers its value."""

    inner_loss: InnerLoss
    batch: Any
    loss: float = math.nan

    def __call__(self, params: Params) -> Tensor:
        loss = self.inner_loss(params, self.batch)
        self.loss = float(loss.detach())
        return loss


def _check_replay(step: _Step, what: str, replayed: float, first: float) -> None:
    if abs(replayed - first) > REPLAY_TOLERANCE * abs(first):
        raise UserError(
            f"attacker step {step.t} does not repeat itself ({what} {first:.3g}, then {replayed:.3g}): "
            "draw its noise and timesteps once, with the batch, and switch dropout off"
        )
