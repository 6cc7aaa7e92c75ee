"""Train CLIP text towers to expose a caption's attributes, then freeze them, as SD does with CLIP."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from adapter_mu.shapes.tokenizer import MAX_TOKENS
from adapter_mu.shapes.vocabulary import ATTRIBUTES, caption, random_scenes

TextModel: TypeAlias = "CLIPTextModel | CLIPTextModelWithProjection"
READ_PADDING = 0.3  # share of padding positions that must also tell the attributes: cross-attention sees them all


def new_text_model(tokenizer: CLIPTokenizer, width: int, layers: int, projection: bool) -> TextModel:
    """An untrained tower; token embeddings start large enough not to drown in attention's output."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    for name, parameter in model.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(parameter, 0, 0.5)
        if "position_embedding" in name:
            nn.init.normal_(parameter, 0, 0.1)
    return model


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Padded token ids (N, MAX_TOKENS)."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _targets(captions: list[str]) -> dict[str, Tensor]:
    """The index of the attribute word in each caption; one past the last when it is not mentioned."""
    return {
        name: torch.tensor(
            [next((i for i, v in enumerate(values) if v in text.split()), len(values)) for text in captions]
        )
        for name, values in ATTRIBUTES.items()
    }


def _attribute_loss(
    hidden: Tensor, spots: Tensor, heads: nn.ModuleDict, target: dict[str, Tensor], rows: Tensor
) -> Tensor:
    which = spots.nonzero()[:, 0]
    return sum(
        (F.cross_entropy(head(hidden[spots]), target[name][rows][which]) for name, head in heads.items()),
        start=torch.zeros(()),
    )


def train_text_model(
    tokenizer: CLIPTokenizer,
    seed: int,
    *,
    width: int,
    layers: int,
    projection: bool,
    penultimate: bool,
    steps: int = 600,
) -> TextModel:
    """Predict every attribute from the states the pipeline will read: the last layer (SD) or the one before (SDXL).

    The end token's state and a share of the padding positions are read; with `projection` the pooled vector too.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    captions = ["", *(caption(s, generator, drop=0.35) for s in random_scenes(8000, generator))]
    ids, target = token_ids(tokenizer, captions), _targets(captions)
    model = new_text_model(tokenizer, width, layers, projection)
    heads, pooled_heads = (
        nn.ModuleDict({n: nn.Linear(width, len(v) + 1) for n, v in ATTRIBUTES.items()}) for _ in range(2)
    )
    parameters = [*model.parameters(), *heads.parameters(), *pooled_heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    for _ in trange(steps, desc=f"text encoder {width}", mininterval=5):
        rows = torch.randint(len(captions), (64,), generator=generator)
        output = model(ids[rows], output_hidden_states=True)
        hidden = output.hidden_states[-2] if penultimate else output.last_hidden_state
        ended = ids[rows] == tokenizer.eos_token_id
        spots = ended & ((torch.rand(ended.shape, generator=generator) < READ_PADDING) | (ended.cumsum(1) == 1))
        loss = _attribute_loss(hidden, spots, heads, target, rows)
        if projection:
            everyone = torch.ones(len(rows), dtype=torch.bool)
            loss = loss + _attribute_loss(output.text_embeds, everyone, pooled_heads, target, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)
