"""The backward pass of attention on pairs, a few query rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def beside(*parts: Tensor | None) -> Tensor:
    """Those that are there, side by side: one matrix product instead of several."""
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there, -1)


def score_factors(q: Tensor, k: Tensor, qdot: Tensor | None, kdot: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two factors whose product is Sdot = qdot k^T + q kdot^T."""
    return beside(qdot, None if kdot is None else q), beside(None if qdot is None else k, kdot)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Row by row, in float32 or finer, as a column."""
    fine = torch.promote_types(x.dtype, torch.float32)
    return (x.to(fine) * y.to(fine)).sum(-1, keepdim=True)


def _less(column: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Left right^T - column; a column rounded to half precision would shift a whole row."""
    if left.dtype == column.dtype and left.dim() == 3:
        return torch.baddbmm(column, left, right.transpose(-1, -2), beta=-1)
    return (left @ right.transpose(-1, -2)).sub_(column)


def _mask_rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., rows, :]


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
    """P of those query rows, in the scores' dtype."""
    s = q[..., rows, :] @ k.transpose(-1, -2)
    seen = _mask_rows(mask, rows)
    return torch.softmax(s if seen is None else s + seen, -1).to(s.dtype)


class AttentionBars:
    """Cotangents of (q, k, v, qdot, kdot, vdot), summed portion by portion of the queries.

    With c = <odot_bar, o> and w = <o_bar, o> + <odot_bar, odot> for every row (which are <P, Pdot_bar> and
    <P, P_bar> + c r, known without summing over keys), E = Sdot - r, F = odot_bar v^T - c and
    G = o_bar v^T + odot_bar vdot^T - w: the scores receive P (G + F E), their tangents P F.
    """

    def __init__(self, saved: Sequence[Tensor | None], o_bar: Tensor, odot_bar: Tensor) -> None:
        """`saved`: q, k, v, qdot, kdot, vdot, mask, o, odot and r, which is None where neither q nor k moves."""
        q, k, v, self.qdot, self.kdot, vdot, self.mask, o, odot, self.r = saved
        assert q is not None and k is not None and v is not None and o is not None and odot is not None
        self.q, self.k, self.v, self.o_bar, self.odot_bar = q, k, v, o_bar, odot_bar
        self.moves_value = vdot is not None
        self.c, self.w = _dot(odot_bar, o), _dot(o_bar, o) + _dot(odot_bar, odot)
        self.both_bars, self.values = beside(o_bar, odot_bar if self.moves_value else None), beside(v, vdot)
        self.left, self.right = (q, k) if self.r is None else score_factors(q, k, self.qdot, self.kdot)
        self.q_bars: list[Tensor] = []
        self.qdot_bars: list[Tensor] = []
        self.k_bar, self.kdot_bar, self.v_bar, self.vdot_bar = (torch.zeros_like(t) for t in (k, k, v, v))

    def portion(self, part: slice) -> None:
        """Add what these query rows contribute."""
        p = probabilities(self.q, self.k, self.mask, part)
        g = _less(self.w[..., part, :], self.both_bars[..., part, :], self.values)
        if self.r is None:
            pt = p.transpose(-1, -2)
            self.v_bar += pt @ self.o_bar[..., part, :]
            self.vdot_bar += pt @ self.odot_bar[..., part, :]
            g.mul_(p)
            self.q_bars.append(g @ self.k)
        else:
            extra = self._bent(part, p, g, self.r[..., part, :])
            g.mul_(p)
            self.q_bars.append(g @ self.k if extra is None else (g @ self.k).add_(extra))
        self.k_bar += g.transpose(-1, -2) @ self.q[..., part, :]

    def _bent(self, part: slice, p: Tensor, g: Tensor, r: Tensor) -> Tensor | None:
        """Where scores move: completes G, adds to what the tangents receive; what q receives through kdot."""
        e = _less(r, self.left[..., part, :], self.right)
        f = _less(self.c[..., part, :], self.odot_bar[..., part, :], self.v)
        g.addcmul_(f, e)
        self._value(part, p, e)
        f.mul_(p)
        own = slice(0, self.q.shape[-1])
        both = f @ beside(self.k, self.kdot)
        self.qdot_bars.append(both[..., own])
        extra = None if self.kdot is None else both[..., self.q.shape[-1] :]
        qdot = None if self.qdot is None else self.qdot[..., part, :]
        both = f.transpose(-1, -2) @ beside(self.q[..., part, :], qdot)
        self.kdot_bar += both[..., own]
        if qdot is not None:
            self.k_bar += both[..., self.q.shape[-1] :]
        return extra

    def _value(self, part: slice, p: Tensor, e: Tensor) -> None:
        """What v and vdot receive where scores move; overwrites E."""
        odot_bar, width = self.odot_bar[..., part, :], self.v.shape[-1]
        both = p.transpose(-1, -2) @ beside(self.o_bar[..., part, :], odot_bar)
        self.v_bar += both[..., :width]
        self.vdot_bar += both[..., width:]
        self.v_bar += e.mul_(p).transpose(-1, -2) @ odot_bar

    def bars(self) -> tuple[Tensor | None, ...]:
        """In the order q, k, v, qdot, kdot, vdot."""
        return (
            torch.cat(self.q_bars, -2),
            self.k_bar,
            self.v_bar,
            None if self.qdot is None else torch.cat(self.qdot_bars, -2),
            None if self.kdot is None else self.kdot_bar,
            self.vdot_bar if self.moves_value else None,
        )
