"""Train the AutoencoderKL that both shapes checkpoints share: 32x32 pictures to 4x8x8 latents."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import trange

from adapter_mu.shapes.draw import draw
from adapter_mu.shapes.vocabulary import random_scenes

LATENT_CHANNELS = 4


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder whose initial latents are not drowned by biases (fan-in weights, no biases)."""
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        mid_block_add_attention=False,
        norm_num_groups=4,
        sample_size=32,
    )
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] ** 2
            nn.init.normal_(module.weight, 0, (0.3 if name.endswith("conv2") else 1) / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    identity = torch.eye(LATENT_CHANNELS)[:, :, None, None]
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
        vae.quant_conv.weight[:LATENT_CHANNELS, :LATENT_CHANNELS] = identity
        vae.quant_conv.bias[LATENT_CHANNELS:] = -5.0
        vae.post_quant_conv.weight.copy_(identity)
    return vae


def train_vae(seed: int, steps: int = 3000, batch_size: int = 12, lr: float = 4e-3) -> AutoencoderKL:
    """Squared plus absolute error and a small KL term; `scaling_factor` makes the latents unit-variance."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    pictures = draw(random_scenes(12_000, generator), generator) * 2 - 1
    vae = new_vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr, betas=(0.9, 0.99))
    bar = trange(steps, desc="vae", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 20) * max(0.01, min(1, (steps - step) / (0.8 * steps)))
        x = pictures[torch.randint(len(pictures), (batch_size,), generator=generator)]
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        loss = error.square().mean() + 0.3 * error.abs().mean() + 1e-4 * posterior.kl().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(mse=f"{error.square().mean().item():.4f}", refresh=False)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=float(1 / encode(vae, (pictures[:1000] + 1) / 2).std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Unscaled latent means (N, 4, 8, 8) of pictures (N, 3, 32, 32) in [0, 1]."""
    return torch.cat([vae.encode(batch * 2 - 1).latent_dist.mode() for batch in pictures.split(256)])
