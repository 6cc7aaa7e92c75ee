"""What a finetune moves, and how the result is used: one interface for weights, adapters and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from adapter_mu.data.sets import Batch, LatentSet
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Attack

BatchOf = Callable[[LatentSet, Attack, int, int, str], Batch]


def encoded_once(data: LatentSet, attack: Attack, seed: int, step: int, stream: str) -> Batch:
    """The batch of a step, with captions as they were encoded before the attack: text encoders stay as they are."""
    return data.batch(attack.batch_size, seed, step, stream, attack.empty_captions)


@dataclass(frozen=True)
class Trained:
    """The parameters an optimizer moves (fp32), the model whose loss they lower, and that model in everybody's hands.

    `published()` is the attacked model at this moment, as it would be shared: in the dtype of the model attacked.
    """

    parameters: Sequence[nn.Parameter]
    model: LoadedModel
    published: Callable[[], LoadedModel]
    batch: BatchOf = encoded_once
