"""The attackers against torch.optim and autograd, and the choice of their step size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Params, quadratic_case
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.meta import SGD, AdamW, Attacker, Momentum, backtracked_lr

ATTACKERS: dict[str, tuple[Attacker, Any]] = {
    "sgd": (SGD(0.3), lambda p: torch.optim.SGD(p, 0.3)),
    "momentum": (Momentum(0.2, 0.8), lambda p: torch.optim.SGD(p, 0.2, momentum=0.8)),
    "adamw": (AdamW(0.1), lambda p: torch.optim.AdamW(p, 0.1)),
    "adamw, other settings": (
        AdamW(0.1, (0.5, 0.9), 1e-3, 0.2),
        lambda p: torch.optim.AdamW(p, 0.1, (0.5, 0.9), 1e-3, 0.2),
    ),
}


def draw(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(*s, generator=generator).double() for n, s in {"a": (3, 2), "b": (4,)}.items()}


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_torch_optim_step_for_step(name: str, dtype: torch.dtype) -> None:
    attacker, reference = ATTACKERS[name]
    params = {n: p.to(dtype) for n, p in draw(0).items()}
    theirs = [p.clone().requires_grad_() for p in params.values()]
    optimizer, state = reference(theirs), attacker.init(params)
    for t in range(1, 6):
        gradients = {n: g.to(dtype) for n, g in draw(t).items()}
        for leaf, gradient in zip(theirs, gradients.values(), strict=True):
            leaf.grad = gradient.clone()
        optimizer.step()
        params, state = attacker.step(params, gradients, state, t)
        for ours, leaf in zip(params.values(), theirs, strict=True):
            torch.testing.assert_close(ours, leaf.detach(), rtol=4 * torch.finfo(dtype).eps, atol=0)


def tensors(*parts: Any) -> list[Tensor]:
    """All tensors of nested dictionaries, in order."""
    return [t for part in parts for t in (tensors(*part.values()) if isinstance(part, dict) else [part])]


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.parametrize("t", [1, 4])
def test_vjp_equals_autograd(name: str, t: int) -> None:
    attacker, _ = ATTACKERS[name]
    params, gradients, state = draw(0), draw(1), attacker.init(draw(0))
    for earlier in range(1, t):
        params, state = attacker.step(params, draw(10 + earlier), state, earlier)
    inputs = [tensor.requires_grad_() for tensor in tensors(params, gradients, state)]
    outputs = attacker.step(params, gradients, state, t)
    params_bar, state_bar = draw(2), {slot: draw(3 + k) for k, slot in enumerate(state)}
    expected = torch.autograd.grad(
        tensors(*outputs), inputs, grad_outputs=tensors(params_bar, state_bar), materialize_grads=True
    )
    with torch.no_grad():
        found = tensors(*attacker.vjp(params, gradients, state, t, params_bar, state_bar))
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-14)


def test_adamw_at_a_gradient_of_exactly_zero_has_slope_lr_over_eps() -> None:
    attacker, zero, one = AdamW(0.1, eps=1e-3), {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    state = attacker.init(zero)
    _, gradients_bar, state_bar = attacker.vjp(one, zero, state, 1, one, state)
    torch.testing.assert_close(gradients_bar["a"], torch.tensor([-100.0]))
    assert all(t.isfinite().all() for t in tensors(state_bar))


def test_adamw_vjp_is_finite_for_gradients_that_underflow_when_squared() -> None:
    attacker, tiny, one = AdamW(0.1), {"a": torch.tensor([1e-20, 1e-21, 1e-30])}, {"a": torch.ones(3)}
    _, gradients_bar, _ = attacker.vjp(one, tiny, attacker.init(one), 1, one, attacker.init(one))
    torch.testing.assert_close(gradients_bar["a"], torch.full((3,), -1e7))


def test_adamw_vjp_without_gradients_says_so() -> None:
    attacker, params = AdamW(0.1), draw(0)
    with pytest.raises(UserError, match="needs the gradients"):
        attacker.vjp(params, None, attacker.init(params), 1, params, attacker.init(params))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SGD(-1.0), "learning rate"),
        (lambda: SGD(float("nan")), "learning rate"),
        (lambda: Momentum(0.1, 1.0), "momentum"),
        (lambda: AdamW(0.1, (0.9, 1.0)), "betas"),
        (lambda: AdamW(0.1, eps=0.0), "eps"),
        (lambda: AdamW(0.1, weight_decay=-1.0), "weight decay"),
    ],
)
def test_refuses_settings_outside_their_range(make: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make()


def test_a_new_learning_rate_by_replace() -> None:
    assert replace(AdamW(0.1, eps=1e-3), lr=0.05) == AdamW(0.05, eps=1e-3)


def parabola(params: Params, curvature: float) -> Tensor:
    """A step of size s multiplies the loss by (1 - s * curvature)^2."""
    return 0.5 * curvature * params["x"].square().sum()


@pytest.mark.parametrize(
    ("curvature", "expected"),
    [
        (1.0, 1.0),  # one step of 1 solves it
        (1.99, 0.5),  # a step of 1 loses only 2 %
        (7.9, 0.125),  # 0.25 loses 5 %, 0.125 nearly all
        (0.01, 1.0),  # every step loses too little, the largest the most
        (1000.0, 0.0625),  # every step overshoots, the smallest the least
    ],
)
def test_backtracking_halves_until_the_loss_drops(curvature: float, expected: float) -> None:
    assert backtracked_lr(parabola, {"x": torch.ones(2).double()}, curvature, 1.0) == expected


def test_backtracking_without_a_finite_result_takes_the_smallest_step() -> None:
    def cliff(params: Params, batch: None) -> Tensor:
        return torch.where(params["x"] == 1, params["x"], params["x"] / 0).sum()

    assert backtracked_lr(cliff, {"x": torch.ones(1)}, None, 0.4, max_halvings=2) == 0.1


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"required_drop": 1.0}, {"max_halvings": -1}])
def test_backtracking_refuses_settings_outside_their_range(settings: dict[str, Any]) -> None:
    case = quadratic_case(1)
    with pytest.raises(UserError):
        backtracked_lr(case.inner_loss, case.params, case.batches[0], **{"lr": 0.1, **settings})
