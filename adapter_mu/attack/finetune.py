"""The malicious (or benign) full finetune, as real trainers run it: AdamW, clipped, with caption dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from adapter_mu.data.sets import LatentSet
from adapter_mu.models import LoadedModel, diffusion_loss, prepare_for_first_order, with_unet
from adapter_mu.progress import progress
from adapter_mu.recipe import Attack

AtStep = Callable[[int, LoadedModel], None]


def finetune(model: LoadedModel, data: LatentSet, attack: Attack, seed: int, at_step: AtStep) -> None:
    """Train every UNet weight (in fp32) on `data`; `at_step(n, attacked)` is called after each n in `attack.steps`.

    The model given is left as it is. Batches depend only on (seed, step), so every arm meets the same attack.
    """
    unet = copy.deepcopy(model.unet).float().requires_grad_(True)
    attacked = with_unet(model, unet)
    prepare_for_first_order(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), attack.lr, weight_decay=attack.weight_decay)
    bar = progress(range(1, max(attack.steps) + 1), "attacking", leave=False)
    for step in bar:
        unet.train()
        batch = data.batch(attack.batch_size, seed, step, "attack", attack.empty_captions)
        loss = diffusion_loss(attacked, None, batch.latents, batch.noise, batch.timesteps, batch.condition)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), attack.max_grad_norm)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step in attack.steps:
            unet.eval()
            at_step(step, attacked if model.dtype == torch.float32 else _as_published(model, unet))


def _as_published(model: LoadedModel, unet: torch.nn.Module) -> LoadedModel:
    """The attacked weights in the dtype of the model's other parts, as its attacker would use them."""
    cast = copy.deepcopy(model.unet)
    cast.load_state_dict(unet.state_dict())
    return with_unet(model, cast)
