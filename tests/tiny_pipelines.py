"""Tiny SD and SDXL pipelines with random weights, built offline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from adapter_mu.models import LoadedModel

TOKENS = 12
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
SD_UNET = UNET | {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
}
# The text encoders differ in width: with equal widths `from_single_file` mistakes the second for the first.
SDXL_WIDTHS = (16, 24)
SDXL_UNET = UNET | {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": sum(SDXL_WIDTHS),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + SDXL_WIDTHS[1],
}


def tiny_tokenizer() -> CLIPTokenizer:
    """Bytes, bytes at a word's end, one merge, start and end: any text encodes."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "re", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("r", "e")], model_max_length=TOKENS, pad_token="<|endoftext|>")


def tiny_text(tokenizer: CLIPTokenizer, width: int, *, projection: bool = False) -> Any:
    """A two-layer CLIP text model."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def tiny_vae() -> AutoencoderKL:
    """Halves height and width, four latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def tiny_sd(*, prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """StableDiffusionPipeline, 8x8 latents, in eval mode, without safety checker."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae().eval(),
        text_encoder=tiny_text(tokenizer, 16).eval(),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**SD_UNET).eval(),
        scheduler=DDIMScheduler(**SCHEDULE, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_sdxl(
    *, prediction_type: str = "epsilon", force_zeros: bool = True, seed: int = 0
) -> StableDiffusionXLPipeline:
    """StableDiffusionXLPipeline, 8x8 latents, in eval mode; `force_zeros` is force_zeros_for_empty_prompt."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae().eval(),
        text_encoder=tiny_text(tokenizer, SDXL_WIDTHS[0]).eval(),
        text_encoder_2=tiny_text(tokenizer, SDXL_WIDTHS[1], projection=True).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        unet=UNet2DConditionModel(**SDXL_UNET).eval(),
        scheduler=DDIMScheduler(**SCHEDULE, prediction_type=prediction_type),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_model(kind: str, **options: Any) -> LoadedModel:
    """A tiny pipeline as `load_model` would give it: frozen and in eval mode."""
    pipeline = tiny_sd(**options) if kind == "sd" else tiny_sdxl(**options)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return LoadedModel(kind, pipeline, f"tiny-{kind}", "memory")  # type: ignore[arg-type]
