"""Noise: adding it, predicting it, and the diffusion loss; always as functions of the UNet's parameters.

Arithmetic on predictions is done in float32 or finer, whatever the UNet's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.models.conditioning import Conditioning
from adapter_mu.models.load import LoadedModel
from adapter_mu.params.functional import call_with


def add_noise(model: LoadedModel, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) latents + sqrt(1 - alpha_bar_t) noise; shapes (N, C, H, W), timesteps (N,) or ()."""
    signal, spread = _mixture(model, latents, timesteps)
    return signal * latents + spread * noise


def predict_noise(
    model: LoadedModel | nn.Module,
    params: Mapping[str, Tensor] | None,
    x_t: Tensor,
    timesteps: Tensor | int,
    cond: Conditioning,
) -> Tensor:
    """The noise (epsilon) that the UNet sees in `x_t`, shape (N, C, H, W); v-predictions are converted.

    Args:
        model: a loaded model, or a bare UNet, whose output is then taken to be epsilon.
        params: tensors (full parameter names) in place of the UNet's own, cast to their dtype; gradients flow to
            them. `None`: the UNet as it is.
        x_t: noisy latents, (N, C, H, W).
        timesteps: (N,), or one for all rows.
        cond: N rows.
    """
    output = _predict(model, params, x_t, timesteps, cond)
    if not isinstance(model, LoadedModel) or model.prediction_type == "epsilon":
        return output
    signal, spread = _mixture(model, x_t, torch.as_tensor(timesteps))
    return signal * output + spread * x_t


def row_losses(
    model: LoadedModel,
    params: Mapping[str, Tensor] | None,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    cond: Conditioning,
) -> Tensor:
    """Mean squared error of each row, shape (N,), to what the UNet is trained to predict: epsilon, or v.

    L_DM of the paper, before the mean over rows; arguments as in `predict_noise`, with clean `latents` and `noise`.
    """
    output = _predict(model, params, add_noise(model, latents, noise, timesteps), timesteps, cond)
    target = noise
    if model.prediction_type == "v_prediction":
        signal, spread = _mixture(model, latents, timesteps)
        target = signal * noise - spread * latents
    return (output - target).square().flatten(1).mean(1)


def diffusion_loss(
    model: LoadedModel,
    params: Mapping[str, Tensor] | None,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    cond: Conditioning,
) -> Tensor:
    """Mean of `row_losses`, a scalar: L_DM of the paper on this batch."""
    return row_losses(model, params, latents, noise, timesteps, cond).mean()


def _predict(
    model: LoadedModel | nn.Module,
    params: Mapping[str, Tensor] | None,
    x_t: Tensor,
    timesteps: Tensor | int,
    cond: Conditioning,
) -> Tensor:
    """The UNet's raw output, in float32 or finer."""
    unet: Any = model.unet if isinstance(model, LoadedModel) else model
    cond = cond.to(dtype=unet.dtype)
    added = None if cond.pooled is None else {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    output: Tensor = call_with(
        unet, params or {}, x_t.to(unet.dtype), timesteps, cond.embeds, added_cond_kwargs=added, return_dict=False
    )[0]
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _mixture(model: LoadedModel, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shape (N or 1, 1, 1, 1), on `like`'s device, float32 or finer."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    table = model.alphas_cumprod
    share = table.to(like.device, dtype)[timesteps.to(like.device)].reshape(-1, 1, 1, 1)
    return share.sqrt(), (1 - share).sqrt()
