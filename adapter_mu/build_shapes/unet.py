"""Architectures and training of the two shapes UNets, assembled into genuine diffusers pipelines."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from tqdm import trange

from adapter_mu.build_shapes.text import train_text_model
from adapter_mu.build_shapes.vae import encode
from adapter_mu.models import LoadedModel, encode_prompts, unconditional
from adapter_mu.shapes.draw import draw
from adapter_mu.shapes.tokenizer import build_tokenizer
from adapter_mu.shapes.vocabulary import caption, random_scenes

COMMON = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (48, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
SDXL_WIDTHS = (48, 64)
TIME_ID_WIDTH = 8
EMPTY_CAPTIONS = 0.1


def new_pipeline(kind: str, vae: AutoencoderKL, seed: int) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """An untrained UNet of `kind` ("sd" or "sdxl") with trained text encoders and the given VAE."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    if kind == "sd":
        text = train_text_model(tokenizer, seed, width=64, layers=2, projection=False, penultimate=False)
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**COMMON, cross_attention_dim=64),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    first, second = (
        train_text_model(tokenizer, seed + i, width=width, layers=3, projection=bool(i), penultimate=True)
        for i, width in enumerate(SDXL_WIDTHS)
    )
    unet = UNet2DConditionModel(
        **COMMON,
        cross_attention_dim=sum(SDXL_WIDTHS),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=SDXL_WIDTHS[1] + 6 * TIME_ID_WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 100 steps, hold, then fall linearly over the last 60 %."""
    return peak * min(1.0, (step + 1) / 100) * max(0.005, min(1.0, (1 - step / steps) / 0.6))


def train_unet(
    model: LoadedModel,
    seed: int,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 2e-3,
    snapshot: Callable[[UNet2DConditionModel], None] | None = None,
) -> UNet2DConditionModel:
    """The diffusion loss on captioned drawings with empty captions in a tenth of the rows; returns the EMA weights.

    Noisier timesteps are drawn more often (t = T u^0.7), because they decide which shape appears.
    `snapshot` gets the running average every 1,000 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(16_000, generator)
    latents = encode(model.pipeline.vae, draw(scenes, generator)) * model.pipeline.vae.config.scaling_factor
    condition = encode_prompts(model, [caption(scene, generator) for scene in scenes], batch_size=500)
    empty = unconditional(model, batch_size)
    unet = model.unet.requires_grad_(True).train().to(memory_format=torch.channels_last)
    average = copy.deepcopy(unet).requires_grad_(False)
    parameters, averages = list(unet.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=1e-3, betas=(0.9, 0.99))
    alphas: Tensor = model.pipeline.scheduler.alphas_cumprod
    bar = trange(steps, desc=f"unet {model.kind}", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = _learning_rate(step, steps, lr)
        rows = torch.randint(len(latents), (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < EMPTY_CAPTIONS
        seen = condition[rows].where(~dropped, empty)
        noise = torch.randn(latents[rows].shape, generator=generator)
        t = (len(alphas) * torch.rand(batch_size, generator=generator) ** 0.7).long()
        signal = alphas[t].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents[rows] + (1 - signal).sqrt() * noise
        added = None if seen.pooled is None else {"text_embeds": seen.pooled, "time_ids": seen.time_ids}
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, t, encoder_hidden_states=seen.embeds, added_cond_kwargs=added).sample
        loss = F.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - min(0.998, (step + 1) / (step + 20)))
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if snapshot and step % 1000 == 999:
            snapshot(average)
    return average.to(memory_format=torch.contiguous_format).eval()
