"""The text encoders as functions of the embeddings of some of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adapter_mu.attack.prompts.tokens import text_parts
from adapter_mu.models import Conditioning, LoadedModel


def encode_with(model: LoadedModel, ids: list[Tensor], rows: list[Tensor], time_ids: Tensor | None) -> Conditioning:
    """What the pipeline's own encoding gives for `ids`, with `rows` in place of the embeddings after the start mark.

    Gradients flow to `rows`; they have the values that `ids` has there wherever those tokens are meant.

    Args:
        model: SD 1.x or SDXL.
        ids: for every text encoder, padded token ids (N, L).
        rows: for every text encoder, token embeddings (N, k, width).
        time_ids: SDXL's picture sizes, (1, 6), which do not depend on the prompt.
    """
    states, pooled = [], None
    for (_, encoder), its_ids, its_rows in zip(text_parts(model), ids, rows, strict=True):
        with _in_place(encoder.get_input_embeddings(), its_rows):
            output = encoder(its_ids, output_hidden_states=True)
        # SDXL reads the last but one layer; the projection of its second encoder is its pooled text.
        states.append(output[0] if model.kind == "sd" else output.hidden_states[-2])
        pooled = output[0] if model.kind == "sdxl" else None
    sizes = None if time_ids is None else time_ids.expand(len(ids[0]), -1)
    return Conditioning(torch.cat(states, dim=-1), pooled, sizes)


@contextmanager
def _in_place(table: torch.nn.Module, rows: Tensor) -> Iterator[None]:
    """Within, the table's answer has `rows` after the first token."""
    after = 1 + rows.shape[1]

    def swap(_: Any, __: Any, found: Tensor) -> Tensor:
        return torch.cat([found[:, :1], rows.to(found.dtype), found[:, after:]], dim=1)

    handle = table.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()
