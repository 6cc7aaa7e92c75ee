"""The original (LDM) layout of the tiny pipelines, for tests of single files; two levels, one layer per block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "down_blocks": "down",
    "up_blocks.0": "up.1",
    "up_blocks.1": "up.0",
}
OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    ".self_attn": ".attn",
}


def ldm_tensors(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a tiny pipeline under the names that single-file checkpoints use."""
    unet, sdxl = pipeline.unet.state_dict(), hasattr(pipeline, "text_encoder_2")
    attends = any(key.startswith("up_blocks.0.attentions") for key in unet)
    tensors = {f"model.diffusion_model.{_unet_key(key, attends)}": value for key, value in unet.items()}
    tensors |= {f"first_stage_model.{_renamed(key, VAE)}": value for key, value in pipeline.vae.state_dict().items()}
    prefix = "conditioner.embedders.0.transformer." if sdxl else "cond_stage_model.transformer."
    tensors |= {f"{prefix}text_model.{key}": value for key, value in pipeline.text_encoder.state_dict().items()}
    if sdxl:
        second = _open_clip(pipeline.text_encoder_2.state_dict())
        tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    return {key: value.contiguous().clone() for key, value in tensors.items()}


def save_single_file(pipeline: Any, path: Path) -> None:
    """Write a tiny pipeline as one .safetensors file."""
    save_file(ldm_tensors(pipeline), path)


def _renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


def _unet_key(key: str, attends: bool) -> str:
    if ".resnets." in key:
        key = _renamed(key, RESNET)
    key = key.replace("up_blocks.0.upsamplers.0.conv", f"output_blocks.1.{1 + attends}.conv")

    def output_block(found: re.Match[str]) -> str:
        return f"output_blocks.{2 * int(found[1]) + int(found[3])}.{int(found[2] == 'attentions')}."

    return _renamed(re.sub(r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.", output_block, key), UNET)


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP stacks the projections of query, key and value, and transposes the last one."""
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            value = torch.cat([tensors[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
        name = _renamed(key.replace(".q_proj.", ".in_proj_"), OPEN_CLIP)
        result[name] = value.T if name == "text_projection" else value
    return result
