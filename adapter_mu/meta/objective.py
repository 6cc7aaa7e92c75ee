"""The meta objective, eq. 3 of the paper, as named terms that are summed and minimised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from adapter_mu.errors import UserError

Bound: TypeAlias = Literal["none", "cap", "tanh", "log"]


@dataclass(frozen=True)
class MetaWeights:
    """How much each term of the meta objective counts; a term of weight zero is left out.

    Attributes:
        forget: on -L_DM(theta_FT; forget set): the attacker should stay bad at the concept.
        related: zeta on the related benign concepts, which the attack should destroy. Negative protects them instead.
        unrelated: zeta on the other benign concepts.
        keep_unconditional: on the squared distance between the attacked model's unconditional prediction and the
            base's. Not in the paper; without it the exact gradient may win by wrecking guidance.
        bound: how the ascended losses are kept from growing for ever, see `bounded`.
        bound_at: the scale of that bound, in units of the diffusion loss; predicting no noise at all costs about 1.
        restore_related: weight on +L_DM(theta; related); None follows eq. 3 and takes `related`.
        restore_unrelated: the same for the unrelated concepts.
    """

    forget: float = 1.0
    related: float = 1.0
    unrelated: float = 1.0
    keep_unconditional: float = 5.0
    bound: Bound = "none"
    bound_at: float = 1.0
    restore_related: float | None = None
    restore_unrelated: float | None = None

    @property
    def restored(self) -> dict[str, float]:
        """Weights on the losses at theta by the losses' names: those given, else eq. 3's."""
        return {
            "related": self.related if self.restore_related is None else self.restore_related,
            "unrelated": self.unrelated if self.restore_unrelated is None else self.restore_unrelated,
        }

    def __post_init__(self) -> None:
        """Refuse an unknown bound and weights that are not numbers (UserError)."""
        _check_bound(self.bound, self.bound_at)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float | int) and not math.isfinite(value):
                raise UserError(f"meta weight {field.name} is {value}: choose a finite number")

    @classmethod
    def paper(cls, zeta: float = 1.0) -> MetaWeights:
        """Eq. 3 as printed: one retain set, so related and unrelated concepts share zeta; no bound, no keep term."""
        return cls(forget=1.0, related=zeta, unrelated=zeta, keep_unconditional=0.0)

    @classmethod
    def official(
        cls,
        gamma1_1: float = 1.0,
        gamma1_2: float = 1.0,
        gamma2_1: float = 1.0,
        gamma2_2: float = 1.0,
        gamma2_3: float = 1.0,
    ) -> MetaWeights:
        """The five weights of the paper's public code, by its names and with its defaults.

        gamma1_* weigh the losses at theta (1: unrelated, 2: related); gamma2_* the ascended losses at theta_FT
        (1: forget, 2: related, 3: unrelated). They already contain the paper's gamma_2: eq. 3's zeta is
        gamma2_2 / gamma2_1 or gamma2_3 / gamma2_1.
        """
        return cls(
            forget=gamma2_1,
            related=gamma2_2,
            unrelated=gamma2_3,
            keep_unconditional=0.0,
            restore_related=gamma1_2,
            restore_unrelated=gamma1_1,
        )


def _check_bound(kind: str, at: float) -> None:
    if kind not in get_args(Bound):
        raise UserError(f"bound: there is no {kind!r}; choose one of {', '.join(get_args(Bound))}")
    if not (math.isfinite(at) and at > 0):
        raise UserError(f"bound_at is {at}: choose a number > 0")


def bounded(loss: Tensor, kind: str, at: float) -> Tensor:
    """A loss whose ascent ends; all kinds leave losses well below `at` almost as they are.

    "none": unbounded, as in the paper: only gradient clipping holds the ascent.
    "cap": min(loss, at): full ascent up to `at`, none beyond; a batch above it no longer pulls.
    "tanh": at tanh(loss / at): the ascent fades smoothly and is practically gone at a few times `at`.
    "log": at log(1 + loss / at): the ascent fades as 1 / (1 + loss / at) and never quite ends.

    Raises:
        UserError: unknown kind, or `at` is not positive.
    """
    _check_bound(kind, at)
    if kind == "cap":
        return loss.clamp(max=at)
    if kind == "tanh":
        return at * torch.tanh(loss / at)
    if kind == "log":
        return at * torch.log1p(loss / at)
    return loss


def attacked_terms(losses_at_attacked: Mapping[str, Tensor], weights: MetaWeights) -> dict[str, Tensor]:
    """The signed terms at theta_FT.

    Args:
        losses_at_attacked: any of "forget", "related", "unrelated" (diffusion losses, scalars) and
            "keep_unconditional" (squared distance to the base's unconditional prediction, scalar).
        weights: their weights; the ascended losses are bounded as it says.

    Returns:
        "ascend_forget", "destroy_related", "destroy_unrelated" (negative) and "keep_unconditional" (positive).

    Raises:
        UserError: a loss under any other name.
    """
    return _terms(
        losses_at_attacked,
        {
            "forget": ("ascend_forget", -weights.forget, True),
            "related": ("destroy_related", -weights.related, True),
            "unrelated": ("destroy_unrelated", -weights.unrelated, True),
            "keep_unconditional": ("keep_unconditional", weights.keep_unconditional, False),
        },
        weights,
    )


def current_terms(losses_at_theta: Mapping[str, Tensor], weights: MetaWeights) -> dict[str, Tensor]:
    """Eq. 3's + zeta L_DM(theta; retain): the benign concepts as they are before any attack.

    Args:
        losses_at_theta: any of "related", "unrelated" (diffusion losses, scalars).
        weights: their weights; bounded like the term at theta_FT that they balance.

    Returns:
        "restore_related" and "restore_unrelated".

    Raises:
        UserError: a loss under any other name.
    """
    table = {name: (f"restore_{name}", weight, True) for name, weight in weights.restored.items()}
    return _terms(losses_at_theta, table, weights)


def _terms(
    losses: Mapping[str, Tensor], table: dict[str, tuple[str, float, bool]], weights: MetaWeights
) -> dict[str, Tensor]:
    """`table`: loss name -> (term name, signed weight, whether it is bounded)."""
    terms: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if name not in table:
            raise UserError(f"meta objective: there is no loss {name!r} here; choose from {', '.join(table)}")
        term, weight, is_bounded = table[name]
        if weight != 0:
            terms[term] = weight * (bounded(loss, weights.bound, weights.bound_at) if is_bounded else loss)
    return terms


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms, a scalar to minimise; UserError if there are none."""
    if not terms:
        raise UserError("meta objective: all its weights are zero or no loss was given; nothing is left to minimise")
    return torch.stack(list(terms.values())).sum()
