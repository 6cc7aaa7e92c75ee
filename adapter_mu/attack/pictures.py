"""The pictures an attack trains on."""

from __future__ import annotations

from dataclasses import replace

import torch

from adapter_mu.data.sets import LatentSet
from adapter_mu.models import Conditioning


def joined(first: LatentSet, second: LatentSet | None) -> LatentSet:
    """Both sets as one, from which batches draw evenly."""
    if second is None:
        return first
    return replace(
        first,
        latents=torch.cat([first.latents, second.latents]),
        captions=[*first.captions, *second.captions],
        condition=Conditioning.cat([first.condition, second.condition]),
    )


def captioned(data: LatentSet, caption: str) -> LatentSet:
    """The same pictures under one caption; as they are without one. It is encoded by `LatentSet.encoded_by`."""
    return replace(data, captions=[caption] * len(data.captions)) if caption else data
