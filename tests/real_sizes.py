"""The configurations of SD 1.5 and SDXL as their diffusers folders have them, and folders of nothing but these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adapter_mu.plan.encoders import VAE

UNETS: dict[str, dict[str, Any]] = {
    "sd": {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def real_models(kind: str) -> dict[str, Any]:
    """All components on the meta device."""
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel(**UNETS[kind]),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L, projection_dim=768)),
        }
        if kind == "sdxl":
            config = CLIPTextConfig(**CLIP_G, projection_dim=1280, hidden_act="gelu")
            models["text_encoder_2"] = CLIPTextModelWithProjection(config)
    return models


def configuration_folder(kind: str, folder: Path) -> Path:
    """A diffusers folder without weights and tokenizers."""
    for name, model in real_models(kind).items():
        (folder / name).mkdir(parents=True)
        model.config.save_pretrained(folder / name) if "text" in name else model.save_config(folder / name)
    clip = "CLIPTextModel"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", clip],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    if kind == "sdxl":
        index["text_encoder_2"] = ["transformers", f"{clip}WithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    return folder
