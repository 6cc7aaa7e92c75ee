"""Frozen layers of bitsandbytes: which they are, and the matrix they stand for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adapter_mu.errors import ModelError


def is_quantized(layer: nn.Module) -> bool:
    """Whether this is a bitsandbytes layer with a 4-bit or 8-bit weight; bitsandbytes itself is not imported."""
    return type(layer).__module__.startswith("bitsandbytes.") and hasattr(layer, "weight")


def dequantized(layer: Any) -> Tensor:
    """The layer's weight as an ordinary matrix, shape (out, in).

    Raises:
        ModelError: a kind of layer that is neither `Linear4bit` nor `Linear8bitLt`.
    """
    import bitsandbytes.functional as functional

    kind = {base.__name__ for base in type(layer).__mro__}
    if "Linear4bit" in kind:
        weight: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight
    if "Linear8bitLt" in kind:
        state, own = layer.state, layer.weight
        codes, scales = (state.CB, state.SCB) if state.CB is not None else (own.CB, own.SCB)
        matrix: Tensor = functional.int8_vectorwise_dequant(codes, scales)
        return matrix
    raise ModelError(f"{type(layer).__name__} is no quantised layer that adapter_mu knows: use nf4 or int8")
