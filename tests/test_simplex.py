"""Projection on the simplex against its definition; the draw and its straight-through gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapter_mu.attack.prompts.simplex import pick, project


def points(rows: int, size: int, scale: float) -> Tensor:
    return scale * torch.randn(rows, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def by_bisection(point: Tensor) -> Tensor:
    """sum of max(point - shift, 0) falls in shift, from at least 1 at min - 1 to 0 at max."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (point - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (point - low).clamp(min=0)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 10.0])
@pytest.mark.parametrize("size", [1, 2, 5, 300])
def test_no_corner_is_in_a_better_direction(size: int, scale: float) -> None:
    """p is the nearest point of a convex set if and only if (point - p) . (q - p) <= 0 for each of its corners q."""
    before = points(50, size, scale)
    after = project(before)
    assert (after >= 0).all() and torch.allclose(after.sum(-1), torch.ones(50, dtype=torch.float64))
    ahead = before - after
    assert (ahead - (ahead * after).sum(-1, keepdim=True)).max() < 1e-9 * max(1, scale)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 10.0])
def test_sorting_finds_what_bisection_finds(scale: float) -> None:
    before = points(20, 617, scale)
    assert torch.allclose(project(before), torch.stack([by_bisection(point) for point in before]), atol=1e-9)


def test_a_distribution_stays_where_it_is() -> None:
    inside = torch.softmax(points(10, 40, 2.0), dim=-1)
    assert torch.allclose(project(inside), inside, atol=1e-12)
    assert torch.equal(project(torch.tensor([0.0, 5.0, 5.0])), torch.tensor([0.0, 0.5, 0.5]))


def test_tokens_are_drawn_as_often_as_their_weights_say() -> None:
    weights = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    numbers = (torch.arange(1000) + 0.5) / 1000
    drawn = pick(weights.expand(1000, 6), numbers)
    assert torch.equal(drawn.sum(-1), torch.ones(1000))
    assert drawn.sum(0).tolist() == [0, 250, 0, 500, 250, 0]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_token_without_weight_is_never_drawn(number: float) -> None:
    weights = torch.tensor([[0.0, 0.3, 0.7, 0.0]])
    drawn = pick(weights, torch.tensor([number], dtype=torch.float64))
    assert drawn.argmax(-1).item() in (1, 2)


def test_the_gradient_passes_straight_through_and_is_clamped() -> None:
    weights = torch.full((2, 3), 1 / 3, requires_grad=True)
    slopes = torch.tensor([[0.5, -3.0, 7.0], [0.0, 1.0, -0.2]])
    (pick(weights, torch.tensor([0.1, 0.9])) * slopes).sum().backward()
    assert torch.equal(weights.grad, slopes.clamp(-1, 1))
