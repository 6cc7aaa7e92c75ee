"""What a recipe will need before it runs: peak memory by stage and time, from the architecture alone.

The UNet is built on the meta device, where tensors have shapes but no memory, and every stage's own code runs there
while the bytes that would be alive are counted. Only what always lives (weights, optimizer, attacker states) is added
up. Not included: the CUDA context, cuDNN's workspace and fragmentation, about 1 to 2 GiB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from adapter_mu.errors import RecipeError
from adapter_mu.live import LiveBytes
from adapter_mu.meta import PairCheckpoint, pair_block
from adapter_mu.meta.hvp import reverse_over_reverse
from adapter_mu.meta.tensors import as_leaves, gradients_of
from adapter_mu.models import announce_blocks, load_config, prepare_for_meta
from adapter_mu.params import Adapter, AttachedLora, Lora, call_with, make_adapter
from adapter_mu.recipe import Recipe

GIB = 2**30
TOKENS = 77
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# In UNet forwards: a checkpointed gradient runs forward twice and backward, which is two; a product by pairs measured.
GRADIENT, PRODUCT = 4.0, 11.0
# Copies of theta in an attacker's state, and whether it keeps gradients.
STATES = {"sgd": 0, "momentum": 1, "adamw": 3}


@dataclass(frozen=True)
class Plan:
    """Bytes by stage, each the peak of the whole run's memory in that stage, and the cost of one outer step."""

    always: dict[str, int]
    transient: dict[str, int]
    forwards: float
    states: int

    @property
    def peaks(self) -> dict[str, int]:
        """What always lives, the attacker's states where they do, and the stage's own bytes."""
        base = sum(self.always.values())
        return {stage: base + own + (0 if stage == "method" else self.states) for stage, own in self.transient.items()}

    @property
    def peak(self) -> int:
        """The largest."""
        return max(self.peaks.values())


def plan(recipe: Recipe, device: str = "meta") -> Plan:
    """Measure a recipe's stages; no weights are read.

    Args:
        recipe: one arm.
        device: "meta"; anything else runs the stages for real there, on random weights.

    Raises:
        RecipeError: the base's configuration is not on this machine.
    """
    with torch.device(device), fused_attention_on_meta():
        unet = _unet(recipe)
        adapter = make_adapter(unet, recipe.adapter.kind, recipe.adapter.subset, rank=recipe.adapter.rank)
        theta = {name: torch.zeros_like(t, device=device) for name, t in adapter.parameters().items()}
        transient = _stages(recipe, unet, adapter, theta)
    small = _bytes(theta.values())
    meta = recipe.meta
    steps = meta.attacker.steps if meta else 0
    exact = meta is not None and meta.order != "first_order"
    always = {"base": _bytes(unet.parameters()), "adapter": small, "optimizer": 2 * small, "gradient": small}
    copies = (steps * (1 + STATES[meta.attacker.rule]) + 2 if exact else 2) if meta else 0
    outer = (2 if meta and meta.keep_unconditional else 1) * GRADIENT if meta else 0
    forwards = 2 + GRADIENT + steps * (GRADIENT + PRODUCT * exact) + outer
    return Plan(always, transient, forwards, copies * small)


def _unet(recipe: Recipe) -> Any:
    from diffusers import UNet2DConditionModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[recipe.base.dtype])
    try:
        unet = UNet2DConditionModel.from_config(load_config(recipe.base.config or recipe.base.model))
    finally:
        torch.set_default_dtype(before)
    return unet.requires_grad_(False).eval()


def _stages(recipe: Recipe, unet: Any, adapter: Adapter, theta: dict[str, Tensor]) -> dict[str, int]:
    """Transient bytes of every stage of one outer step."""
    meta, rows = recipe.meta, recipe.train.batch_size
    paired = meta is None or meta.hvp == "pair_checkpoint" or (meta.hvp == "auto" and recipe.train.checkpointing)
    if paired:
        announce_blocks(unet, pair_block)
        applied = AttachedLora(unet, adapter) if isinstance(adapter, Lora) else adapter
    else:
        prepare_for_meta(unet, checkpointing=recipe.train.checkpointing)
        applied = adapter

    def loss(rows: int) -> Callable[[dict[str, Tensor]], Tensor]:
        inputs = _inputs(unet, rows)
        return lambda p: call_with(unet, applied.materialize(p), **inputs)[0].float().square().mean()

    known = [*unet.parameters(), *unet.buffers(), *theta.values()]
    found = {"method": _peak(lambda: _gradient(loss(rows), theta), known)}
    if meta is None:
        return found
    found["attacker"] = _peak(lambda: _gradient(loss(rows), theta), known)
    if meta.order != "first_order":
        engine = PairCheckpoint() if paired else reverse_over_reverse
        found["product"] = _peak(lambda: engine(loss(rows), theta, theta), known)
    together = rows + 2 * max(1, rows // 2)
    found["outer loss"] = _peak(lambda: _gradient(loss(together), theta), known)
    return found


def _inputs(unet: Any, rows: int) -> dict[str, Any]:
    config, dtype = unet.config, unet.dtype
    side, width = config.sample_size, config.cross_attention_dim
    inputs: dict[str, Any] = {
        "sample": torch.empty(rows, config.in_channels, side, side, dtype=dtype),
        "timestep": torch.zeros(rows, dtype=torch.long),
        "encoder_hidden_states": torch.empty(rows, TOKENS, width if isinstance(width, int) else width[0], dtype=dtype),
        "return_dict": False,
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pair = torch.empty(rows, pooled, dtype=dtype), torch.empty(rows, 6, dtype=dtype)
        inputs["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), pair, strict=True))
    return inputs


def _peak(work: Callable[[], Any], known: list[Tensor]) -> int:
    with LiveBytes(known) as live:
        work()
    return live.peak


def _gradient(loss: Callable[[dict[str, Tensor]], Tensor], theta: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = as_leaves(theta)
    return gradients_of(loss(leaves), leaves)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def fused_attention_on_meta() -> Iterator[None]:
    """Meta tensors have no fused attention of their own and would count whole score matrices; lend them the CPU's."""
    original = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if has_torch_function((q, k, v)):
            result: Tensor = handle_torch_function(fused, (q, k, v), q, k, v, *args, **kwargs)
            return result
        if q.is_meta and q.dim() == 4 and not args and kwargs.get("attn_mask") is None:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            result = flash(q, k, v, 0.0, False, scale=kwargs.get("scale"))[0]
            return result
        return original(q, k, v, *args, **kwargs)

    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def as_table(found: Plan, card: int | None) -> str:
    """For people; says whether the card fits."""
    rows = [*found.always.items(), ("attacker states", found.states)]
    lines = [f"{name:<18}{size / GIB:8.2f} GiB" for name, size in rows]
    lines += [f"{'+ ' + name:<18}{size / GIB:8.2f} GiB transient" for name, size in found.transient.items()]
    lines += [f"{'peak':<18}{found.peak / GIB:8.2f} GiB   (and 1 to 2 GiB for CUDA itself)"]
    lines += [f"{'one outer step':<18}{found.forwards:8.0f} UNet forwards"]
    if card is not None:
        fits = found.peak + 1.5 * GIB <= card
        lines.append(f"{card / GIB:g} GiB card: {'fits' if fits else 'does not fit'}")
    return "\n".join(lines)


def card_bytes(text: str) -> int:
    """Bytes of a size such as 24GB; RecipeError for anything else."""
    number = text.upper().removesuffix("B").removesuffix("G").removesuffix("GI")
    try:
        return int(float(number) * GIB)
    except ValueError:
        raise RecipeError(f"--card {text} is no size; write it like 24GB.") from None


def save(found: Plan, path: Path) -> None:
    """As JSON, in bytes."""
    facts = {"always": found.always, "states": found.states, "transient": found.transient, "peak": found.peak}
    path.write_text(json.dumps(facts | {"forwards": found.forwards}, indent=2), encoding="utf-8")
