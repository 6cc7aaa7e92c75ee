"""Comparing a pair product with double backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from oracles import relative_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapter_mu.meta import PairCheckpoint, product

Params = dict[str, Tensor]
EXACT = 1e-12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(loss: Callable[[Params], Tensor], params: Params, engine: PairCheckpoint | None = None) -> float:
    """Relative distance of the pair product to double backward, with the same random numbers."""
    vector = {name: draw(*t.shape, seed=9).to(t.dtype) for name, t in params.items()}
    torch.manual_seed(1)
    with sdpa_kernel([SDPBackend.MATH]):
        expected, _ = product("reverse_over_reverse", loss, params, vector)
    torch.manual_seed(1)
    found, _ = (engine or PairCheckpoint(2))(loss, params, vector)
    return relative_error(found, expected)


def of_input(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[Callable[[Params], Tensor], Params]:
    weight = draw(shape[-1], shape[-1], seed=2)
    return lambda p: torch.sin(function(p["x"] @ weight)).pow(2).sum(), {"x": draw(*shape)}
