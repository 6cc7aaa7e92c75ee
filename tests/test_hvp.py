"""Hessian-vector products against dense Hessians and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Params, mlp_case, quadratic_case, unet_case
from oracles import dense_hessian, flat, relative_error

from adapter_mu.errors import UserError
from adapter_mu.meta import PRODUCTS, product


def random_like(params: Params, seed: int = 5) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in params.items()}


@pytest.mark.parametrize(
    ("name", "bar"), [("auto", 1e-13), ("reverse_over_reverse", 1e-13), ("finite_difference", 1e-8)]
)
@pytest.mark.parametrize("make_case", [quadratic_case, mlp_case])
def test_equals_the_dense_hessian(make_case: Any, name: str, bar: float) -> None:
    case = make_case(0)
    vector = random_like(case.params)
    found, _ = product(name, case.outer_loss, case.params, vector)
    expected = dense_hessian(case.outer_loss, case.params) @ flat(vector)
    assert float((flat(found) - expected).norm() / expected.norm()) < bar


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_on_a_unet_the_product_is_symmetric_and_finite_differences_are_close(model: str) -> None:
    case, _ = unet_case(model, "lora", "full", 0)
    u, v = random_like(case.params, 1), random_like(case.params, 2)
    hu, gradient = product("reverse_over_reverse", case.outer_loss, case.params, u)
    hv, _ = product("reverse_over_reverse", case.outer_loss, case.params, v)
    torch.testing.assert_close(flat(v) @ flat(hu), flat(u) @ flat(hv), rtol=1e-11, atol=0)
    approximate, none = product("finite_difference", case.outer_loss, case.params, u)
    assert relative_error(approximate, hu) < 1e-5
    assert none is None
    leaves = {n: p.detach().requires_grad_() for n, p in case.params.items()}
    expected = torch.autograd.grad(case.outer_loss(leaves), list(leaves.values()))
    assert gradient is not None
    assert relative_error(gradient, dict(zip(leaves, expected, strict=True))) < 1e-13


def test_finite_differences_in_float32_are_a_cross_check_only() -> None:
    case = mlp_case(0)
    vector = random_like(case.params)
    exact, _ = product("auto", case.outer_loss, case.params, vector)
    single = mlp_case(0, torch.float32)
    found, _ = product("finite_difference", single.outer_loss, single.params, vector)
    assert 1e-6 < relative_error(found, exact) < 2e-2


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(
    "loss_fn",
    [lambda p: torch.tensor(3.0).double(), lambda p: p["a"].sum(), lambda p: p["a"].sum() * 0 + 1],
    ids=["constant", "linear", "flat"],
)
def test_losses_without_curvature_have_product_zero(name: str, loss_fn: Any) -> None:
    params = quadratic_case(0).params
    found, _ = product(name, loss_fn, params, random_like(params))
    assert found.keys() == params.keys()
    assert all(float(t.abs().max()) < 1e-9 for t in found.values())


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_with_zero_is_zero(name: str) -> None:
    case = mlp_case(0)
    found, _ = product(name, case.outer_loss, case.params, {n: torch.zeros_like(p) for n, p in case.params.items()})
    assert all(torch.equal(t, torch.zeros_like(t)) for t in found.values())


def test_a_half_precision_loss_takes_a_single_precision_vector() -> None:
    params = {"x": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}
    found, _ = product("auto", lambda p: p["x"].pow(3).sum(), params, {"x": torch.ones(2)})
    assert found["x"].dtype == torch.float32
    torch.testing.assert_close(found["x"], torch.tensor([6.0, 12.0]))


def test_refuses_a_product_it_does_not_have() -> None:
    case = quadratic_case(0)
    with pytest.raises(UserError, match="there is no 'fast'; choose one of auto"):
        product("fast", case.outer_loss, case.params, case.params)


def test_refuses_a_vector_of_another_shape_or_name() -> None:
    case = quadratic_case(0)
    for vector in ({"a": case.params["a"]}, {**case.params, "b": torch.zeros(4)}):
        with pytest.raises(UserError, match="names and shapes"):
            product("auto", case.outer_loss, case.params, vector)
