"""Eq. 3 and its variants as named terms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.meta import MetaWeights, attacked_terms, bounded, current_terms, total

AT_ATTACKED = {"forget": 0.2, "related": 0.3, "unrelated": 0.5, "keep_unconditional": 0.01}
AT_THETA = {"related": 0.07, "unrelated": 0.11}


def scalars(values: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def objective(weights: MetaWeights) -> dict[str, float]:
    terms = attacked_terms(scalars(AT_ATTACKED), weights) | current_terms(scalars(AT_THETA), weights)
    return {name: round(float(term), 12) for name, term in terms.items()}


def test_paper_is_equation_3() -> None:
    assert objective(MetaWeights.paper(zeta=0.5)) == {
        "ascend_forget": -0.2,
        "destroy_related": -0.15,
        "destroy_unrelated": -0.25,
        "restore_related": 0.035,
        "restore_unrelated": 0.055,
    }


def test_official_uses_the_code_s_own_weights_at_both_ends() -> None:
    assert objective(MetaWeights.official(gamma1_1=0.1, gamma1_2=0.2, gamma2_1=0.3, gamma2_2=0.4, gamma2_3=0.5)) == {
        "ascend_forget": -0.06,
        "destroy_related": -0.12,
        "destroy_unrelated": -0.25,
        "restore_related": 0.014,
        "restore_unrelated": 0.011,
    }


def test_keep_term_is_minimised_and_negative_zeta_protects() -> None:
    assert objective(MetaWeights(related=-0.5, unrelated=0.0)) == {
        "ascend_forget": -0.2,
        "destroy_related": 0.15,
        "keep_unconditional": 0.05,
        "restore_related": -0.035,
    }


def test_total_is_the_sum_and_differentiable() -> None:
    losses = {name: loss.requires_grad_() for name, loss in scalars(AT_ATTACKED).items()}
    total(attacked_terms(losses, MetaWeights())).backward()
    assert [float(loss.grad) for loss in losses.values()] == [-1.0, -1.0, -1.0, 5.0]


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("none", 3.0, 1.0),
        ("cap", 2.0, 0.0),
        ("tanh", 2 * 0.9051482536448664, 1 - 0.9051482536448664**2),
        ("log", 2 * 0.9162907318741551, 0.4),
    ],
)
def test_bounds_far_up(kind: str, value: float, slope: float) -> None:
    loss = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    result = bounded(loss, kind, 2.0)
    result.backward()
    assert float(result.detach()) == pytest.approx(value)
    assert float(loss.grad) == pytest.approx(slope)


@pytest.mark.parametrize("kind", ["none", "cap", "tanh", "log"])
def test_bounds_leave_small_losses_alone(kind: str) -> None:
    assert float(bounded(torch.tensor(1e-4).double(), kind, 1.0)) == pytest.approx(1e-4, rel=1e-3)


def test_the_bound_holds_for_ascended_losses_only() -> None:
    weights = MetaWeights(bound="cap", bound_at=0.05)
    assert objective(weights) == {
        "ascend_forget": -0.05,
        "destroy_related": -0.05,
        "destroy_unrelated": -0.05,
        "keep_unconditional": 0.05,  # 5 x 0.01
        "restore_related": 0.05,
        "restore_unrelated": 0.05,
    }
    far = attacked_terms(scalars({"keep_unconditional": 3.0}), weights)
    assert float(far["keep_unconditional"]) == 15.0


def test_refusals() -> None:
    with pytest.raises(UserError, match="there is no loss 'retain'"):
        attacked_terms(scalars({"retain": 0.1}), MetaWeights())
    with pytest.raises(UserError, match="there is no loss 'forget'"):
        current_terms(scalars({"forget": 0.1}), MetaWeights())
    with pytest.raises(UserError, match="nothing is left"):
        total(attacked_terms(scalars({"forget": 0.1}), MetaWeights(forget=0.0)))
    with pytest.raises(UserError, match="bound: there is no 'clip'"):
        MetaWeights(bound="clip")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="bound_at is 0"):
        MetaWeights(bound_at=0.0)
    with pytest.raises(UserError, match="meta weight related is nan"):
        MetaWeights(related=float("nan"))
