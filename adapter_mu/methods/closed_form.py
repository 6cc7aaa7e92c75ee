"""The linear algebra of UCE and RECE: edits of every cross-attention key and value matrix at once, in float64.

Both methods replace every matrix W* by W* (I + up @ down) with one `up` and one `down` for the whole UNet, because
their equations differ between matrices only by the factor W* on the left. So they are solved once, in the space of
text embeddings, and are exact low-rank adapters as they stand: (W* up, down), nothing to decompose.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.params import LowRank, select
from adapter_mu.progress import progress

SUBSET = "cross_attention_kv"
WORST_CONDITION = 1e10  # float64 has 16 digits; beyond this the weights keep fewer than six of them

Values = Literal["edited", "original"]


@dataclass(frozen=True)
class Edit:
    """W = W* (I + up @ down); `up` (width, rank) and `down` (rank, width), float64 on the CPU."""

    up: Tensor
    down: Tensor

    @staticmethod
    def none(width: int) -> Edit:
        """W = W*."""
        return Edit(torch.zeros(width, 0, dtype=torch.float64), torch.zeros(0, width, dtype=torch.float64))

    def apply(self, rows: Tensor) -> Tensor:
        """Embeddings (N, width) that W* maps to what the edited matrices make of `rows` (N, width)."""
        return rows + rows @ self.down.T @ self.up.T

    def matrix(self) -> Tensor:
        """I + up @ down, (width, width)."""
        return torch.eye(len(self.up), dtype=self.up.dtype) + self.up @ self.down


@dataclass(frozen=True)
class Erasure:
    """Embeddings to erase and what to put in their place, float64; `weight` multiplies every squared distance."""

    contexts: Tensor
    """T(c_f), (N, width)."""
    guides: Tensor
    """What each is mapped to, T(empty) in the paper, (N, width)."""
    weight: float


def solve(edit: Edit, erasure: Erasure, preserve: Tensor, lamb: float, values: Values = "edited") -> Edit:
    """One closed-form step from the current matrices W~ = W* P, for every W* together.

    It goes to the minimum over W of

        weight sum_j |W c_j - V g_j|^2 + sum_k w_k |W r_k - V r_k|^2 + lamb |W - W~|^2,

    UCE's objective (the paper's section 3.2) where W~ = V = W*. Setting the gradient to zero gives
    P' = P + [weight (V g - P c) c^T + (V - P) R] M^-1 with M = lamb I + weight c c^T + R and R = sum w r r^T.

    Args:
        edit: P, by its factors.
        erasure: the c_j, g_j and weight.
        preserve: R, (width, width).
        lamb: how much staying at W~ counts.
        values: V is what W~ makes of an embedding ("edited") or what W* does ("original").

    Returns:
        P', whose rank grows by at most the number of erased rows, whatever is preserved, and never beyond the width.

    Raises:
        RecipeError: the equations have no finite solution, or there is nothing to erase.
    """
    contexts, weight = erasure.contexts, erasure.weight
    identity = torch.eye(contexts.shape[1], dtype=contexts.dtype)
    times_inverse = factorised(lamb * identity + weight * contexts.T @ contexts + preserve, "the edit's matrix", "lamb")
    target = edit.apply(erasure.guides) if values == "edited" else erasure.guides
    missing = target - edit.apply(contexts)
    moving = missing.ne(0).any(dim=1)  # a padded prompt starts with the same row as its guide
    if not moving.any():
        raise RecipeError("Every concept of `method.erase` equals its guide already; name another guide.")
    # V - P is zero for "edited" values and -up @ down for "original" ones, which only changes the old down factor.
    old = edit.down if values == "edited" else edit.down - times_inverse(edit.down @ preserve)
    up = torch.cat([edit.up, weight * missing[moving].T], dim=1)
    return _compact(Edit(up, torch.cat([old, times_inverse(contexts[moving])])))


def factorised(matrix: Tensor, what: str, remedy: str) -> Callable[[Tensor], Tensor]:
    """Rows (N, width) -> rows @ matrix^-1 for a symmetric positive definite `matrix`, by one Cholesky factorisation.

    Warns where the condition number (in the 1-norm) leaves few digits; RecipeError where there is no finite solution.
    """
    if not torch.isfinite(matrix).all():
        raise RecipeError(f"The text embeddings are not finite, so neither is {what}; load the base in fp32.")
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise RecipeError(f"With these scales {what} has no inverse; raise `{remedy}`.")
    condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(torch.cholesky_inverse(factor), 1))
    if condition > WORST_CONDITION:
        warnings.warn(
            f"the condition number of {what} is {condition:.0e}, which leaves about {digits_left(condition)} digits of"
            f" the edited weights: raise `{remedy}` or lower the other scales",
            RuntimeWarning,
            stacklevel=3,
        )
    return lambda rows: torch.cholesky_solve(rows.T, factor).T


def digits_left(condition: float) -> int:
    """Decimal digits that a float64 solution keeps."""
    return max(0, int(-math.log10(condition * torch.finfo(torch.float64).eps)))


def _compact(edit: Edit) -> Edit:
    """The same product with orthonormal rows in `down`, so rank at most the width and nothing lost to fp32 factors.

    The rows of a padded prompt are nearly parallel: factors as they come out would be large and cancel each other.
    """
    basis, coordinates = torch.linalg.qr(edit.down.T)
    return Edit(edit.up @ coordinates.T, basis.T)


def key_value_weights(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Every cross-attention key and value matrix (out, width) by the name of its layer.

    Raises:
        RecipeError: the UNet has none.
        ModelError: they are stored in a quantized form.
    """
    found = {
        name.removesuffix(".weight"): weight
        for name, weight in select(unet, SUBSET).items()
        if name.endswith(".weight")
    }
    if any(not weight.is_floating_point() for weight in found.values()):
        raise ModelError("a closed-form edit needs the weights themselves: load the base in fp32, bf16 or fp16.")
    return found


def energy(weights: Mapping[str, Tensor]) -> Tensor:
    """Sum over all matrices of W*^T W*, (width, width): all that RECE's embedding needs to know of them."""
    width = next(iter(weights.values())).shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    for weight in progress(weights.values(), "key and value matrices", leave=False):
        matrix = weight.detach().to("cpu", torch.float64)
        total.addmm_(matrix.T, matrix)
    return total


def low_rank(unet: nn.Module, edit: Edit) -> LowRank:
    """The edit of every key and value matrix as an exact adapter; one pass, one matrix in float64 at a time."""
    factors: dict[str, Any] = {}
    for layer, weight in progress(key_value_weights(unet).items(), "editing keys and values", leave=False):
        up = weight.detach().to("cpu", torch.float64) @ edit.up
        factors[layer] = (edit.down, up.to(torch.promote_types(weight.dtype, torch.float32)))
    return LowRank(unet, SUBSET, factors)
