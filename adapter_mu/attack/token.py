"""Textual inversion: a new token is learned, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_mu.attack.trained import Trained
from adapter_mu.data.prompts import swapped
from adapter_mu.data.sets import Batch, LatentSet
from adapter_mu.models import LoadedModel, copy_unet, encode_prompts
from adapter_mu.recipe import Attack, Swap


class WithRows(nn.Module):
    """A frozen token embedding with further rows, (k, width), for the token numbers `ids`."""

    def __init__(self, frozen: nn.Embedding, ids: list[int], rows: Tensor) -> None:
        super().__init__()
        self.frozen, self.ids = frozen, ids
        self.rows = nn.Parameter(rows.float())

    @property
    def weight(self) -> Tensor:
        """The frozen rows, for those who ask an embedding for its dtype."""
        return self.frozen.weight

    def forward(self, numbers: Tensor) -> Tensor:
        """Embeddings (..., width) in the frozen rows' dtype."""
        embedded = F.embedding(numbers.clamp(max=self.frozen.num_embeddings - 1), self.frozen.weight)
        for row, number in zip(self.rows, self.ids, strict=True):
            embedded = torch.where((numbers == number).unsqueeze(-1), row.to(embedded.dtype), embedded)
        return embedded


def token_names(attack: Attack) -> list[str]:
    """The tokens that stand for the placeholder: `<x>`, `<x>_1`, ..., as diffusers' pipelines spell them out."""
    return [attack.placeholder, *(f"{attack.placeholder}_{i}" for i in range(1, attack.vectors))]


def train_token(model: LoadedModel, attack: Attack, swap: Swap) -> Trained:
    """A placeholder known to every tokenizer of the pipeline, with rows to train in every text encoder.

    `swap` says of which word it takes the place; captions are encoded anew in every step, with gradients.
    """
    pipeline, rows = copy.copy(model.pipeline), []
    for suffix in encoders_of(model):
        tokenizer, encoder, row = _with_token(
            getattr(pipeline, f"tokenizer{suffix}"), getattr(pipeline, f"text_encoder{suffix}"), attack
        )
        pipeline.register_modules(**{f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder})
        rows.append(row)
    # The attack sets its UNet up for training, and the one given is to stay as it is.
    pipeline.register_modules(unet=copy_unet(model.unet, ()))
    attacked = replace(model, pipeline=pipeline)

    def batch(data: LatentSet, attack: Attack, seed: int, step: int, stream: str) -> Batch:
        drawn, noise, timesteps, dropped = data.draw(attack.batch_size, seed, step, stream, attack.empty_captions)
        captions = [swapped(data.captions[row], swap) for row in drawn.tolist()]
        condition = encode_prompts(attacked, captions, gradient=True)
        device = data.latents.device
        condition = condition.where(~dropped.to(device), data.empty.expand(len(captions)))
        return Batch(data.latents[drawn.to(device)], noise.to(device), timesteps.to(device), condition)

    return Trained(rows, attacked, lambda: attacked, batch)


def encoders_of(model: LoadedModel) -> Iterator[str]:
    """What follows the names of the pipeline's tokenizers and text encoders: "", and "_2" on SDXL."""
    return (suffix for suffix in ("", "_2") if getattr(model.pipeline, f"text_encoder{suffix}", None) is not None)


def _with_token(tokenizer: Any, encoder: Any, attack: Attack) -> tuple[Any, nn.Module, nn.Parameter]:
    """Copies that know the placeholder, and its trainable rows."""
    tokenizer, encoder, names = copy.deepcopy(tokenizer), copy_unet(encoder, ()), token_names(attack)
    frozen = encoder.get_input_embeddings()
    start = _start(tokenizer, frozen, attack.initializer)
    tokenizer.add_tokens(names)
    embedding = WithRows(frozen, tokenizer.convert_tokens_to_ids(names), start.repeat(len(names), 1))
    encoder.set_input_embeddings(embedding)
    for part in encoder.modules():
        if getattr(part, "eos_token_id", None) == 2:
            # As published, CLIP pools at the highest token number, which would now be the placeholder's.
            part.eos_token_id = tokenizer.eos_token_id
    return tokenizer, encoder, embedding.rows


def _start(tokenizer: Any, frozen: nn.Embedding, initializer: str) -> Tensor:
    """The mean of the initializer's embeddings, (1, width); of all embeddings without one."""
    numbers = tokenizer(initializer, add_special_tokens=False).input_ids if initializer else []
    chosen = frozen.weight[numbers] if numbers else frozen.weight
    return chosen.detach().float().mean(0, keepdim=True)
