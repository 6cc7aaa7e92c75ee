"""Adapter files for other tools: LoRA as diffusers or kohya write it, dense deltas as ComfyUI reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from adapter_mu.data.cache import write_text
from adapter_mu.errors import UserError
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.edits import Edits
from adapter_mu.export.kohya import kohya_tensors
from adapter_mu.export.metadata import modelspec, network
from adapter_mu.export.peft_format import peft_file
from adapter_mu.export.staging import staged
from adapter_mu.export.streaming import Lazy, payload_size, write_streamed

AdapterForm = Literal["peft", "kohya"]
UNMERGED = (
    "warning: this file is an adapter that is not merged: whoever leaves it out has the base with all it knows."
    " Only a merged checkpoint is a defence (adapter-mu merge)."
)


def write_adapter(
    out: Path, edits: Edits, base: Checkpoint, form: AdapterForm, dtype: torch.dtype, card: str | None = None
) -> None:
    """One .safetensors file, complete or not at all.

    Args:
        out: must not exist.
        edits: of one adapter.
        base: tells the names.
        form: "peft" for `load_lora_weights`; "kohya" for ComfyUI, A1111, sd-scripts and diffusers too. A dense delta
            goes as "kohya" only, as `.diff` keys, which of these ComfyUI alone understands.
        dtype: of the factors or deltas; alphas stay fp32.
        card: text of the model card, written beside as OUT.md.

    Raises:
        UserError: `out` exists or is no .safetensors, the disk is full, or the kind does not go into the format.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"an adapter is a .safetensors file, not '{out.name}': end --out in .safetensors.")
    if form == "kohya":
        tensors = kohya_tensors(edits.components, base)
        own = network(base, edits, tensors)
    else:
        tensors, own = peft_file(edits.components)
    metadata = modelspec(base, [edits], lora=True, original=form == "kohya" and base.kind == "sdxl") | own
    lazy = {name: _lazy(name, tensor, dtype) for name, tensor in tensors.items()}
    with staged(out, payload_size(lazy)) as part:
        write_streamed(part, lazy, metadata, lambda _: None)
    if card:
        write_text(out.with_suffix(".md"), card)


def _lazy(name: str, tensor: Tensor, dtype: torch.dtype) -> Lazy:
    wanted = torch.float32 if name.endswith(".alpha") else dtype
    return Lazy(wanted, tuple(tensor.shape), lambda: _finite(name, tensor.to(wanted)))


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"{name!r} would hold values that are not finite in {str(tensor.dtype)[6:]}: choose --dtype fp32."
        )
    return tensor
