"""The meta gradient against full unrolled backpropagation, and its contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Case, Params, mlp_case, moved_adapter, noise_batch, noise_loss, quadratic_case, tiny_unet, unet_case
from oracles import Rule, adamw_rule, dense_hessian, flat, momentum_rule, relative_error, sgd_rule, unrolled

from adapter_mu.errors import UserError
from adapter_mu.meta import SGD, AdamW, Attacker, Momentum, meta_gradient
from adapter_mu.params import pull_back

BAR = 1e-10
# AdamW's slope is lr / eps where a gradient is as small as eps. With torch's 1e-8, entries that are zero but for
# rounding (about 1e-17) are thus known to about 1e-9 only, in any implementation; 1e-6 leaves the arithmetic in view.
EPS = 1e-6
SPACES = {
    "lora": ("lora", "full", {"sgd": 0.3, "momentum": 0.1, "adamw": 0.02}),
    "cross_attention_kv": ("dense", "cross_attention_kv", {"sgd": 1.0, "momentum": 0.5, "adamw": 0.05}),
    "non_cross_attention": ("dense", "non_cross_attention", {"sgd": 0.02, "momentum": 0.01, "adamw": 0.002}),
}


def attackers(lr: dict[str, float], eps: float = EPS) -> dict[str, tuple[Attacker, Rule]]:
    return {
        "sgd": (SGD(lr["sgd"]), sgd_rule(lr["sgd"])),
        "momentum": (Momentum(lr["momentum"]), momentum_rule(lr["momentum"], 0.9)),
        "adamw": (AdamW(lr["adamw"], eps=eps), adamw_rule(lr["adamw"], 0.9, 0.999, eps, 1e-2)),
    }


def solve(case: Case, attacker: Attacker, **settings: Any) -> Any:
    return meta_gradient(case.inner_loss, case.outer_loss, case.params, case.batches, attacker=attacker, **settings)


@pytest.mark.parametrize("rule_name", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_equals_unrolled_backpropagation(model: str, space: str, steps: int, rule_name: str) -> None:
    kind, subset, lr = SPACES[space]
    case, _ = unet_case(model, kind, subset, steps)
    attacker, rule = attackers(lr)[rule_name]
    expected, attacked = unrolled(case, rule)
    result = solve(case, attacker)
    assert relative_error(result.gradient, expected) <= BAR
    assert relative_error(result.attacked, attacked) <= BAR
    # The case would prove nothing if the second-order part were negligible.
    assert relative_error(solve(case, attacker, order="first_order").gradient, expected) > 1e-3


@pytest.mark.parametrize("space", SPACES)
def test_adamw_with_the_default_eps_agrees_as_far_as_rounding_allows(space: str) -> None:
    kind, subset, lr = SPACES[space]
    case, _ = unet_case("sd", kind, subset, 2)
    attacker, rule = attackers(lr, eps=1e-8)["adamw"]
    assert relative_error(solve(case, attacker).gradient, unrolled(case, rule)[0]) <= 1e-8


@pytest.mark.parametrize("rule_name", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_attack_in_the_full_space_pulled_back_to_lora_factors(model: str, rule_name: str) -> None:
    unet = tiny_unet(model)
    adapter = moved_adapter(unet, "lora", "cross_attention")
    judge, theta = noise_batch(unet, 99), adapter.parameters()

    def lift(factors: Params) -> Params:
        whole = {name: parameter.detach().clone().requires_grad_() for name, parameter in unet.named_parameters()}
        return {**whole, **adapter.materialize(factors)}

    case = Case(
        lambda params, batch: noise_loss(unet, params, batch),
        lambda params: -noise_loss(unet, params, judge),
        theta,
        [noise_batch(unet, seed) for seed in (10, 11)],
    )
    attacker, rule = attackers({"sgd": 0.02, "momentum": 0.01, "adamw": 0.002})[rule_name]
    expected, attacked = unrolled(case, rule, lift=lift)
    result = solve(replace(case, params=lift(theta)), attacker)
    assert relative_error(result.attacked, attacked) <= BAR
    assert relative_error(pull_back(adapter, theta, result.gradient), expected) <= BAR


@pytest.mark.parametrize("rule_name", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("last", [1, 2])
def test_truncation_equals_an_unroll_detached_before_the_last_steps(last: int, rule_name: str) -> None:
    case, _ = unet_case("sd", "lora", "cross_attention", 3)
    attacker, rule = attackers({"sgd": 0.3, "momentum": 0.1, "adamw": 0.02})[rule_name]
    expected, _ = unrolled(case, rule, constant_steps=3 - last)
    truncated = solve(case, attacker, order=last).gradient
    assert relative_error(truncated, expected) <= BAR
    assert relative_error(truncated, solve(case, attacker).gradient) > 1e-3


def test_first_order_is_the_outer_gradient_at_the_attacked_parameters() -> None:
    case = mlp_case(3)
    result = solve(case, SGD(0.1), order="first_order")
    leaves = {name: tensor.requires_grad_() for name, tensor in result.attacked.items()}
    expected = torch.autograd.grad(case.outer_loss(leaves), list(leaves.values()))
    assert relative_error(result.gradient, dict(zip(leaves, expected, strict=True))) == 0


def test_orders_meet_at_their_ends() -> None:
    case = mlp_case(2)
    exact, first = (solve(case, AdamW(0.1), order=order).gradient for order in ("exact", "first_order"))
    for order in (2, 7):
        assert relative_error(solve(case, AdamW(0.1), order=order).gradient, exact) == 0
    assert relative_error(solve(case, AdamW(0.1), order=0).gradient, first) == 0


@pytest.mark.parametrize("make_case", [quadratic_case, mlp_case])
def test_sgd_equals_the_product_of_dense_matrices(make_case: Any) -> None:
    """v_0 = (I - tau H_1) ... (I - tau H_M) v_M, with the Hessians written out."""
    case, lr = make_case(3), 0.05
    theta = {name: tensor.detach() for name, tensor in case.params.items()}
    factors = []
    for batch in case.batches:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
        gradient = torch.autograd.grad(case.inner_loss(leaves, batch), list(leaves.values()))
        hessian = dense_hessian(lambda params, batch=batch: case.inner_loss(params, batch), theta)
        factors.append(torch.eye(len(hessian)).double() - lr * hessian)
        theta = {n: p - lr * g for (n, p), g in zip(theta.items(), gradient, strict=True)}
    expected = flat(solve(case, SGD(lr), order="first_order").gradient)
    for factor in reversed(factors):
        expected = factor @ expected
    result = solve(case, SGD(lr))
    torch.testing.assert_close(flat(result.gradient), expected, rtol=1e-12, atol=1e-13)
    assert relative_error(result.attacked, theta) < 1e-14


def test_reports_the_losses_and_leaves_theta_alone() -> None:
    case = quadratic_case(2)
    before = {name: tensor.clone() for name, tensor in case.params.items()}
    result = solve(case, SGD(0.05))
    assert relative_error(case.params, before) == 0
    assert result.inner_losses[0] == float(case.inner_loss(case.params, case.batches[0]))
    assert len(result.inner_losses) == 2
    assert result.outer_loss == float(case.outer_loss(result.attacked))
    assert not any(tensor.requires_grad for tensor in (*result.gradient.values(), *result.attacked.values()))


def test_an_attack_without_steps_changes_nothing() -> None:
    case = replace(quadratic_case(1), batches=[])
    result = solve(case, SGD(0.05))
    assert relative_error(result.attacked, case.params) == 0
    assert relative_error(result.gradient, solve(case, SGD(0.05), order="first_order").gradient) == 0


@pytest.mark.parametrize("attacker", [SGD(0.1), Momentum(0.1), AdamW(0.1, weight_decay=0.0)])
@pytest.mark.parametrize("hvp", ["reverse_over_reverse", "finite_difference"])
def test_parameters_that_the_losses_do_not_touch_get_zero(attacker: Attacker, hvp: str) -> None:
    case = mlp_case(2)
    widened = replace(
        case,
        params={**case.params, "idle": torch.ones(3).double()},
        inner_loss=lambda p, b: case.inner_loss({n: t for n, t in p.items() if n != "idle"}, b),
        outer_loss=lambda p: case.outer_loss({n: t for n, t in p.items() if n != "idle"}),
    )
    gradient = solve(widened, attacker, hvp=hvp).gradient
    assert torch.equal(gradient.pop("idle"), torch.zeros(3).double())
    assert relative_error(gradient, solve(case, attacker).gradient) < 1e-6


def test_finite_differences_approximate_the_exact_gradient() -> None:
    case, _ = unet_case("sd", "lora", "cross_attention", 2)
    exact = solve(case, SGD(0.3)).gradient
    assert relative_error(solve(case, SGD(0.3), hvp="finite_difference").gradient, exact) < 1e-6


@pytest.mark.parametrize("order", ["exactly", -1, 1.5, True, None])
def test_refuses_an_unknown_order(order: Any) -> None:
    with pytest.raises(UserError, match="order is"):
        solve(quadratic_case(1), SGD(0.1), order=order)


def test_refuses_an_unknown_product_even_where_none_is_needed() -> None:
    with pytest.raises(UserError, match="there is no 'backwards'"):
        solve(quadratic_case(1), SGD(0.1), order="first_order", hvp="backwards")


def test_refuses_an_inner_loss_that_draws_anew() -> None:
    case, generator = mlp_case(2), torch.Generator().manual_seed(0)

    def noisy(params: Params, batch: Any) -> torch.Tensor:
        return case.inner_loss(params, (torch.randn(5, 3, generator=generator).double(), batch[1]))

    with pytest.raises(UserError, match="does not repeat itself"):
        solve(replace(case, inner_loss=noisy), SGD(0.1))


def test_refuses_losses_that_are_not_one_number_and_integer_parameters() -> None:
    case = mlp_case(1)
    with pytest.raises(UserError, match="one number"):
        solve(replace(case, outer_loss=lambda params: params["0.bias"]), SGD(0.1))
    with pytest.raises(UserError, match="'count' holds torch.int64"):
        solve(replace(case, params={**case.params, "count": torch.ones(2, dtype=torch.int64)}), SGD(0.1))
