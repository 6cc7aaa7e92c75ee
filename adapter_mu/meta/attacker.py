"""The attacker's update rules and their vector-Jacobian products, in closed form.

A rule maps (params, gradients, state) to (params', state'). The meta gradient runs it backwards: cotangents ("bars")
of the outputs become cotangents of the inputs. Every formula is elementwise, so no graph is built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.meta.tensors import Params

State: TypeAlias = dict[str, Params]


class Attacker(Protocol):
    """An optimizer whose steps can be differentiated; `t` counts steps from 1."""

    @property
    def lr(self) -> float:
        """The paper's tau."""

    @property
    def vjp_needs_gradients(self) -> bool:
        """Whether `vjp` reads the gradients, which then have to be kept for every step."""

    def init(self, params: Params) -> State:
        """The state before the first step."""

    def step(self, params: Params, gradients: Params, state: State, t: int) -> tuple[Params, State]:
        """One update; nothing is changed in place."""

    def vjp(
        self, params: Params, gradients: Params | None, state: State, t: int, params_bar: Params, state_bar: State
    ) -> tuple[Params, Params, State]:
        """Cotangents of (params, gradients, state), given those of the step's two results."""


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(tensor) for name, tensor in params.items()}


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _check_lr(lr: float) -> None:
    _require(math.isfinite(lr) and lr >= 0, f"the attacker's learning rate is {lr}: choose a number >= 0")


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent, theta' = theta - lr g: the inner step of the paper's Algorithm 1, line 8."""

    lr: float
    vjp_needs_gradients = False

    def __post_init__(self) -> None:
        """Refuse a learning rate that is negative or not finite (UserError)."""
        _check_lr(self.lr)

    def init(self, params: Params) -> State:
        """No state."""
        return {}

    def step(self, params: Params, gradients: Params, state: State, t: int) -> tuple[Params, State]:
        """As `torch.optim.SGD(lr)`."""
        return {n: torch.add(p, gradients[n], alpha=-self.lr) for n, p in params.items()}, {}

    def vjp(
        self, params: Params, gradients: Params | None, state: State, t: int, params_bar: Params, state_bar: State
    ) -> tuple[Params, Params, State]:
        """The cotangent of theta passes through; g receives -lr times the cotangent."""
        return params_bar, {n: bar * -self.lr for n, bar in params_bar.items()}, {}


@dataclass(frozen=True)
class Momentum:
    """Heavy ball, b' = momentum b + g and theta' = theta - lr b'."""

    lr: float
    momentum: float = 0.9
    vjp_needs_gradients = False

    def __post_init__(self) -> None:
        """Refuse a bad learning rate or momentum (UserError)."""
        _check_lr(self.lr)
        _require(0 <= self.momentum < 1, f"the attacker's momentum is {self.momentum}: choose a number in [0, 1)")

    def init(self, params: Params) -> State:
        """A zero buffer per parameter."""
        return {"momentum": _zeros(params)}

    def step(self, params: Params, gradients: Params, state: State, t: int) -> tuple[Params, State]:
        """As `torch.optim.SGD(lr, momentum)`."""
        buffer = {n: self.momentum * b + gradients[n] for n, b in state["momentum"].items()}
        return {n: torch.add(p, buffer[n], alpha=-self.lr) for n, p in params.items()}, {"momentum": buffer}

    def vjp(
        self, params: Params, gradients: Params | None, state: State, t: int, params_bar: Params, state_bar: State
    ) -> tuple[Params, Params, State]:
        """The buffer b' is reached both from theta' and from the next step."""
        buffer_bar = {n: torch.add(state_bar["momentum"][n], bar, alpha=-self.lr) for n, bar in params_bar.items()}
        return params_bar, buffer_bar, {"momentum": {n: self.momentum * bar for n, bar in buffer_bar.items()}}


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, Algorithm 2), with the defaults of `torch.optim.AdamW`."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    vjp_needs_gradients = True

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges (UserError)."""
        _check_lr(self.lr)
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"the attacker's betas are {self.betas}: choose two numbers in [0, 1)",
        )
        # At a gradient of exactly zero the update's slope is lr / eps.
        _require(self.eps > 0, f"the attacker's eps is {self.eps}: choose a number > 0, or the step has no derivative")
        _require(self.weight_decay >= 0, f"the attacker's weight decay is {self.weight_decay}: choose a number >= 0")

    def init(self, params: Params) -> State:
        """Zero first and second moments."""
        return {"mean": _zeros(params), "square": _zeros(params)}

    def _moments(self, gradient: Tensor, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        beta1, beta2 = self.betas
        return mean.lerp(gradient, 1 - beta1), (square * beta2).addcmul(gradient, gradient, value=1 - beta2)

    def _corrections(self, t: int) -> tuple[float, float]:
        """Step size over the first bias correction, and the root of the second."""
        return self.lr / (1 - self.betas[0] ** t), math.sqrt(1 - self.betas[1] ** t)

    def step(self, params: Params, gradients: Params, state: State, t: int) -> tuple[Params, State]:
        """As `torch.optim.AdamW`, in its order of operations."""
        size, root = self._corrections(t)
        moved: Params = {}
        new: State = {"mean": {}, "square": {}}
        for n, p in params.items():
            mean, square = self._moments(gradients[n], state["mean"][n], state["square"][n])
            denominator = square.sqrt() / root + self.eps
            moved[n] = (p * (1 - self.lr * self.weight_decay)).addcdiv(mean, denominator, value=-size)
            new["mean"][n], new["square"][n] = mean, square
        return moved, new

    def vjp(
        self, params: Params, gradients: Params | None, state: State, t: int, params_bar: Params, state_bar: State
    ) -> tuple[Params, Params, State]:
        """Needs the gradients: the second moment is quadratic in them."""
        if gradients is None:
            raise UserError("AdamW's vjp needs the gradients of the step: keep them")
        before, gradients_bar = {}, {}
        earlier: State = {"mean": {}, "square": {}}
        for n, bar in params_bar.items():
            moments = self._moments(gradients[n], state["mean"][n], state["square"][n])
            mean_bar, square_bar = self._moment_bars(*moments, t, bar)
            mean_bar, square_bar = mean_bar + state_bar["mean"][n], square_bar + state_bar["square"][n]
            beta1, beta2 = self.betas
            before[n] = bar * (1 - self.lr * self.weight_decay)
            gradients_bar[n] = (1 - beta1) * mean_bar + 2 * (1 - beta2) * gradients[n] * square_bar
            earlier["mean"][n], earlier["square"][n] = beta1 * mean_bar, beta2 * square_bar
        return before, gradients_bar, earlier

    def _moment_bars(self, mean: Tensor, square: Tensor, t: int, bar: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents of the new moments from theta' = ... - size * mean / (sqrt(square) / root + eps)."""
        size, root = self._corrections(t)
        deviation = square.sqrt()
        denominator = deviation / root + self.eps
        # mean / deviation first: it stays moderate where both are tiny.
        slope = size * bar * (mean / deviation) / (2 * root * denominator.square())
        # square == 0 only where every gradient so far was 0; there the update is -size * mean / eps, linear in mean.
        return bar * -size / denominator, torch.where(square > 0, slope, torch.zeros_like(slope))
