"""The plan: one real outer step, gone through on the meta device while the bytes that would be alive are counted.

Tensors there have shapes but no memory, so the code of training itself runs at full size on any machine. Not included:
the CUDA context, cuDNN's workspace and fragmentation, about 1 to 2 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adapter_mu.live import LiveBytes, stage
from adapter_mu.methods import draws, new_method, trains
from adapter_mu.models import LoadedModel, load_config, predict_noise
from adapter_mu.params import Adapter, make_adapter
from adapter_mu.plan.encoders import decoding_bytes, encoder_bytes
from adapter_mu.plan.skeleton import (
    DTYPES,
    StandIn,
    conditions,
    fused_attention_on_meta,
    sets,
    skeleton,
    with_quantized_layers,
)
from adapter_mu.recipe import Meta, Recipe
from adapter_mu.stages.products import check_memory, set_up
from adapter_mu.train import Trainer

STAGES = ("cache", "method", "attacker", "product", "outer loss", "restore", "optimizer")
# Copies of theta that the attacker's own state and gradients add to every step that is differentiated.
COPIES = {"sgd": 1, "momentum": 2, "adamw": 4}
PIXELS = 8  # a side of a latent pixel


@dataclass(frozen=True)
class Plan:
    """Bytes that live all the time, peaks by stage without those, the host's peak, and the cost of one outer step.

    Attributes:
        always: on the card: base, adapter, optimizer, encoders.
        transient: by stage, what it needs besides.
        host: on the CPU at most, for what training keeps there.
        forwards: arithmetic of one outer step by stage, in forwards of the UNet on one row.
    """

    always: dict[str, int]
    transient: dict[str, int]
    host: int
    forwards: dict[str, float]

    @property
    def peaks(self) -> dict[str, int]:
        """What always lives and the stage's own bytes."""
        base = sum(self.always.values())
        return {name: base + own for name, own in self.transient.items()}

    @property
    def peak(self) -> int:
        """The largest."""
        return max(self.peaks.values())


def plan(recipe: Recipe, device: str = "meta", size: int | None = None) -> Plan:
    """Go through a recipe's stages; no weights are read.

    Args:
        recipe: one arm.
        device: "meta"; "cpu" runs the stages for real, on random weights.
        size: side of the pictures in pixels; None: what the base was made for.

    Raises:
        RecipeError: parts of the recipe do not go together.
        ModelError: the base's configuration is not on this machine.
    """
    check_memory(recipe)
    source = recipe.base.config or recipe.base.model
    dtype = DTYPES[recipe.base.dtype]
    with fused_attention_on_meta():
        model = skeleton(load_config(source), dtype, device, size // PIXELS if size else None)
        adapter = _adapter(model, recipe)
        if recipe.base.quantize != "none":
            model = with_quantized_layers(model, recipe.base.quantize)
        whole = Plan({"base": _bytes(model)}, *_cache(model, recipe))
        encoders = encoder_bytes(source, dtype)
        whole.transient["cache"] += encoders + decoding_bytes(recipe, source, model)
        remembers = _remembers(recipe)
        if recipe.train.memory.encoders == "keep" or remembers:
            whole.always["encoders"] = encoders
            whole.transient["cache"] -= encoders
        if not trains(recipe.method.name, recipe.meta):
            return whole
        found = _trained(whole, model, adapter, recipe)
        if remembers and recipe.train.memory.states == "device":
            found.always["teacher"] = sum(t.numel() * t.element_size() for t in adapter.parameters().values())
        return found


def _remembers(recipe: Recipe) -> bool:
    """Whether the method has weights of its own, with which it draws while training goes on."""
    if not trains(recipe.method.name, None):
        return False
    return draws(new_method(recipe.method.name, recipe.method.options))


def _adapter(model: LoadedModel, recipe: Recipe) -> Adapter:
    a = recipe.adapter
    return make_adapter(model.unet, a.kind, a.subset, rank=a.rank, alpha=a.alpha)


def _bytes(model: LoadedModel) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.unet.parameters(), *model.unet.buffers()))


def _cache(model: LoadedModel, recipe: Recipe) -> tuple[dict[str, int], int, dict[str, float]]:
    """Drawing the sets: predictions without gradients, both of guidance in one batch."""
    rows = recipe.data.sampler.batch_size * (2 if recipe.data.sampler.guidance > 1 else 1)
    x = sets(model).forget.latents.expand(rows, -1, -1, -1)
    timesteps = torch.zeros(rows, dtype=torch.long, device=x.device)
    with LiveBytes([*model.unet.parameters(), *model.unet.buffers()]) as live, torch.no_grad():
        predict_noise(model, None, x, timesteps, conditions(model, rows))
    return {"cache": live.peak}, 0, {"one": sum(live.flops.values()) / rows}


def _trained(found: Plan, model: LoadedModel, adapter: Adapter, recipe: Recipe) -> Plan:
    """The plan with the stages of training."""
    on_host, memory = recipe.train.memory.states == "cpu", recipe.train.memory
    live, resting = _rehearse(model, adapter, recipe)
    small = sum(t.numel() * t.element_size() for t in adapter.parameters().values())
    moments = small // 2 + small // 128 if memory.optimizer == "adam8bit" else 0
    extra, again = _further_steps(recipe.meta, small)
    found.always["adapter"] = 0 if on_host else small
    found.always["optimizer"] = resting + (0 if on_host else moments)
    one = found.forwards.pop("one")
    for name in (name for name in STAGES if name in live.peaks):
        more = extra if name in ("attacker", "product", "outer loss") and not on_host else 0
        found.transient[name] = live.peaks[name] - resting + more
        found.forwards[name] = live.flops[name] / one * again.get(name, 1)
    host = live.host_peak + (small + extra + moments if on_host else 0)
    return Plan(found.always, found.transient, host, found.forwards)


def _rehearse(model: LoadedModel, adapter: Adapter, recipe: Recipe) -> tuple[LiveBytes, int]:
    """What one outer step was seen to need, and what the optimizer keeps on the card."""
    theta, on_host = list(adapter.parameters().values()), recipe.train.memory.states == "cpu"
    made = _rehearsed(recipe)
    with set_up(model, made, adapter, checked=False) as (ready, own):
        known = [*ready.unet.parameters(), *ready.unet.buffers()]
        live = LiveBytes(known + ([] if on_host else theta), host=theta if on_host else [])
        method = StandIn(ready) if trains(recipe.method.name, None) else None  # None: it starts unlearned
        trainer = Trainer(ready, method, own, sets(ready), made, state_file=Path(), log_file=Path())
        with live:
            resting = _prime(trainer, live)
            trainer.step(1)
    return live, resting


def _rehearsed(recipe: Recipe) -> Recipe:
    """One attacker step, because all are alike; and Adam in 32 bits (in 8: off the card), because 8 need weights."""
    meta, memory = recipe.meta, recipe.train.memory
    if meta and meta.attacker.steps > 1:
        meta = meta.model_copy(update={"attacker": meta.attacker.model_copy(update={"steps": 1})})
    if memory.optimizer == "adam8bit":
        memory = memory.model_copy(update={"optimizer": "adam", "optimizer_on": "cpu"})
    train = recipe.train.model_copy(update={"memory": memory})
    base = recipe.base.model_copy(update={"quantize": "none"})
    return recipe.model_copy(update={"meta": meta, "train": train, "base": base})


def _prime(trainer: Trainer, live: LiveBytes) -> int:
    """Let the optimizer make its moments, as the first step does; the bytes they take on the card."""
    with stage("start"):
        for tensor in trainer.theta.values():
            tensor.grad = torch.zeros_like(tensor)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    live.peaks.clear()
    return live.live


def _further_steps(meta: Meta | None, small: int) -> tuple[int, dict[str, float]]:
    """Bytes that steps beyond the first add, and how often a stage's arithmetic is done."""
    if meta is None or meta.attacker.steps == 0:
        return 0, {}
    steps = meta.attacker.steps
    kept = 0 if meta.order == "first_order" else steps if meta.order == "exact" else min(int(meta.order), steps)
    copies = max(0, kept - 1) * COPIES[meta.attacker.rule]
    return copies * small, {"attacker": steps, "product": kept}
