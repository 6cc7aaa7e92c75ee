"""Tiny CLIPs, safety checkers and classifiers with random weights, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_pipelines import TOKENS, tiny_tokenizer
from transformers import CLIPConfig, CLIPModel, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WIDTH, SIDE = 8, 16
LAYER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny_config() -> CLIPConfig:
    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**LAYER, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    vision = {**LAYER, "image_size": SIDE, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


def save_processor(folder: Path) -> Path:
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A folder as OpenAI's CLIP has it."""
    torch.manual_seed(0)
    CLIPModel(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return save_processor(folder)


def shaken(model: Any) -> PreTrainedModel:
    """Its parameters random where the class starts them at one or zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model
