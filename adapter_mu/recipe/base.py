"""Which checkpoint a run starts from."""

from __future__ import annotations

from typing import Literal

from adapter_mu.recipe.strict import Strict


class Base(Strict):
    """The checkpoint theta*: an embedded name, a diffusers folder, a .safetensors file or a hub id."""

    model: str
    config: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    quantize: Literal["none", "nf4", "int8"] = "none"  # linear layers of the frozen UNet, while a LoRA is trained
    device: Literal["auto", "cpu", "cuda"] = "auto"
    local_files_only: bool = False
