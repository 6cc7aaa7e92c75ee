"""A UNet announces its blocks, for products of the Hessian that recompute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adapter_mu.models.quantized import dequantized, is_quantized


def announce_blocks(
    unet: Any,
    block: Callable[..., Any],
    frozen_linear: Callable[[nn.Module, Callable[[nn.Module], Tensor]], None] | None = None,
) -> None:
    """Have the UNet call its resnets and transformer blocks through `block`, with fused attention.

    Diffusers' own hook is used: `enable_gradient_checkpointing(gradient_checkpointing_func=...)`; train and eval mode
    are left alone.

    Args:
        unet: a diffusers model.
        block: called as block(module, *inputs), such as `adapter_mu.meta.pair_block`.
        frozen_linear: called as frozen_linear(layer, dequantize) on every quantised layer of bitsandbytes, which have
            no forward derivative of their own: `adapter_mu.meta.frozen_linear`.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet.set_attn_processor(AttnProcessor2_0())
    unet.enable_gradient_checkpointing(block)
    for layer in unet.modules():
        if frozen_linear and is_quantized(layer):
            frozen_linear(layer, dequantized)
