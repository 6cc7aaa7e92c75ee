"""The malicious (or benign) finetune, as real trainers run it: clipped, with caption dropout, and class pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from adapter_mu.attack.lora import train_lora
from adapter_mu.attack.optimizers import new_optimizer
from adapter_mu.attack.token import train_token
from adapter_mu.attack.trained import Trained
from adapter_mu.attack.weights import SUBSET_OF_KIND, train_weights
from adapter_mu.data.sets import Batch, LatentSet
from adapter_mu.models import LoadedModel, diffusion_loss, prepare_for_first_order
from adapter_mu.progress import progress
from adapter_mu.recipe import Attack, Swap

AtStep = Callable[[int, LoadedModel], None]


def finetune(
    model: LoadedModel,
    data: LatentSet,
    attack: Attack,
    seed: int,
    at_step: AtStep,
    *,
    prior: LatentSet | None = None,
    swap: Swap | None = None,
) -> None:
    """Train what `attack.kind` says on `data`; `at_step(n, attacked)` is called after each n in `attack.steps`.

    The model given is left as it is. Batches depend only on (seed, step), so every arm meets the same attack.

    Args:
        model: what is attacked.
        data: the pictures, with captions encoded by this model.
        attack: how.
        seed: of batches, noise and the adapter's start.
        at_step: scores the model.
        prior: DreamBooth's class pictures; their loss counts `attack.prior_weight` (Ruiz et al. 2022, eq. 2).
        swap: for textual inversion, the word that the token takes the place of.
    """
    trained = _start(model, attack, seed, swap)
    unet = trained.model.unet
    _prepare(unet, attack)
    optimizer = new_optimizer(attack, trained.parameters)
    bar = progress(range(1, max(attack.steps) + 1), "attacking", leave=False)
    for step in bar:
        unet.train()
        optimizer.zero_grad()
        batches = _batches(trained, data, prior, attack, seed, step)
        value = sum(_backward(trained.model, batch, weight) for batch, weight in batches)
        torch.nn.utils.clip_grad_norm_(trained.parameters, attack.max_grad_norm)
        optimizer.step()
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if step in attack.steps:
            unet.eval()
            at_step(step, trained.published())


def _start(model: LoadedModel, attack: Attack, seed: int, swap: Swap | None) -> Trained:
    if attack.kind == "lora":
        return train_lora(model, attack, seed)
    if attack.kind == "textual_inversion":
        assert swap is not None, "textual inversion is told which word its token stands for"
        return train_token(model, attack, swap)
    return train_weights(model, SUBSET_OF_KIND[attack.kind])


def _prepare(unet: Any, attack: Attack) -> None:
    """Fused attention, and recomputed activations where asked for."""
    prepare_for_first_order(unet, checkpointing=attack.checkpointing)
    if attack.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()


def _batches(
    trained: Trained, data: LatentSet, prior: LatentSet | None, attack: Attack, seed: int, step: int
) -> Iterator[tuple[Batch, float]]:
    """The step's batches, each with what its loss counts."""
    yield trained.batch(data, attack, seed, step, "attack"), 1.0
    if prior is not None:
        yield trained.batch(prior, attack, seed, step, "prior"), attack.prior_weight


def _backward(model: LoadedModel, batch: Batch, weight: float) -> float:
    """Add the gradient of the weighted loss to the parameters'; the loss. One graph at a time is in memory."""
    loss: Tensor = weight * diffusion_loss(model, None, batch.latents, batch.noise, batch.timesteps, batch.condition)
    loss.backward()
    return loss.item()
