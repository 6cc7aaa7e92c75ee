"""Attention on pairs, a few query rows at a time: what fused kernels do for the value, here for value and tangent.

Only q, k, v and their tangents are kept; probabilities exist for one portion of the queries, in forward and again in
backward. Costs three times plain attention, because it is quadratic in what moves.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapter_mu.meta.pair_attention_bars import AttentionBars, beside, probabilities, score_factors
from adapter_mu.meta.pair_functions import Softmax
from adapter_mu.meta.pairs import join, run_function, split

# Probabilities at once where no chunk is asked for; about five such matrices exist: 80 MiB in bfloat16 on a GPU, and
# what a core's cache holds on a CPU.
PORTION, CPU_PORTION = 2**23, 2**19

Halves = tuple[Tensor | None, ...]


def pair_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    chunk: int | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` on pairs, exact to second order.

    Args:
        query: (..., L, E); `key` (..., S, E); `value` (..., S, Ev).
        key: as above.
        value: as above.
        attn_mask: added to the scores, or booleans saying which keys to see; broadcast to (..., L, S). A mask that
            depends on the parameters, and dropout, are handled unchunked.
        dropout_p: probability of dropping a probability.
        is_causal: row i sees keys up to i.
        scale: of the scores; None means E^(-1/2).
        enable_gqa: repeat the heads of key and value to those of the query.
        chunk: query rows at a time; None: as many as keep the probabilities within 2^23 elements, 0: all.
    """
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    (q, qdot), (k, kdot), (v, vdot) = (split(_autocast(t)) for t in (query, key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    q, qdot = q * factor, None if qdot is None else qdot * factor  # cheaper than scaling the scores
    mask = _additive(attn_mask, is_causal, q, k)
    if dropout_p or split(mask if mask is not None else q)[1] is not None and mask is not None:
        return _composed(join(q, qdot), join(k, kdot), join(v, vdot), mask, dropout_p)
    if qdot is None and kdot is None and vdot is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    shape = query.shape[:-1] + value.shape[-1:]
    if q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and (mask is None or mask.dim() < 3):
        q, k, v = (t.flatten(0, -3) for t in (q, k, v))
        qdot, kdot, vdot = (None if t is None else t.flatten(0, -3) for t in (qdot, kdot, vdot))
    o, odot = run_function(Attention, q, k, v, qdot, kdot, vdot, mask, _rows(q, k, chunk))
    return join(o.reshape(shape), odot.reshape(shape))


def _autocast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return tensor.to(torch.get_autocast_dtype(kind)) if on else tensor


def _additive(mask: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Tensor | None:
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))


def _composed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    primal, tangent = split(scores if mask is None else scores + mask)
    dim = -1
    p = torch.softmax(primal, dim) if tangent is None else join(*run_function(Softmax, primal, tangent, dim))
    return F.dropout(p, dropout) @ v


def _rows(q: Tensor, k: Tensor, chunk: int | None) -> int:
    length: int = q.shape[-2]
    if chunk is not None:
        return chunk or length
    portion = CPU_PORTION if q.device.type == "cpu" else PORTION
    return max(1, min(length, portion // max(1, q[..., 0, 0].numel() * k.shape[-2])))


class Attention(torch.autograd.Function):
    """(q, k, v, qdot, kdot, vdot, mask, rows) -> o = P v and odot = Pdot v + P vdot, with P = softmax(q k^T + mask).

    Sdot = qdot k^T + q kdot^T and Pdot = P (Sdot - r) with r = <P, Sdot> for every query row. At least one of the
    tangents is not None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        qdot: Tensor | None,
        kdot: Tensor | None,
        vdot: Tensor | None,
        mask: Tensor | None,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        """Portion by portion of the queries; r is kept for backward."""
        bent = qdot is not None or kdot is not None
        left, right = score_factors(q, k, qdot, kdot) if bent else (q, k)
        out, outdot, means = [], [], []
        for start in range(0, q.shape[-2], rows):
            part = slice(start, start + rows)
            p = probabilities(q, k, mask, part)
            both = p @ beside(v, vdot)
            out.append(both[..., : v.shape[-1]])
            tangent = both[..., v.shape[-1] :]
            if bent:
                pdot = (left[..., part, :] @ right.transpose(-1, -2)).mul_(p)
                means.append(pdot.sum(-1, keepdim=True, dtype=torch.promote_types(p.dtype, torch.float32)))
                pdot.sub_(means[-1] * p) if p.dtype != means[-1].dtype else pdot.addcmul_(p, means[-1], value=-1)
                tangent = pdot @ v if vdot is None else (pdot @ v).add_(tangent)
            outdot.append(tangent)
        o, odot = torch.cat(out, -2), torch.cat(outdot, -2)
        ctx.save_for_backward(q, k, v, qdot, kdot, vdot, mask, o, odot, torch.cat(means, -2) if bent else None)
        ctx.rows = rows
        return o, odot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_bar: Tensor, odot_bar: Tensor) -> Halves:
        """Portion by portion again, see `AttentionBars`."""
        work = AttentionBars(ctx.saved_tensors, o_bar, odot_bar)
        for start in range(0, work.q.shape[-2], ctx.rows):
            work.portion(slice(start, start + ctx.rows))
        return *work.bars(), None, None
