"""Quantised layers of bitsandbytes: making them, which they are, and the matrix they stand for."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapter_mu.errors import ModelError

Kind = Literal["nf4", "int8"]


def is_quantized(layer: nn.Module) -> bool:
    """Whether this is a bitsandbytes layer with a 4-bit or 8-bit weight, or one that has a `dequantized_weight()`.

    Bitsandbytes itself is not imported.
    """
    foreign = type(layer).__module__.startswith("bitsandbytes.") and hasattr(layer, "weight")
    return foreign or hasattr(layer, "dequantized_weight")


def quantized_copy(unet: Any, kind: Kind, device: torch.device) -> Any:
    """The UNet on `device` with every Linear layer quantised, frozen; the given one stays as it is, where it is.

    One layer at a time goes to the device, so that the whole in full precision never has to.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    linear = {name: layer for name, layer in unet.named_modules() if type(layer) is nn.Linear}
    kept = {id(p): p for layer in linear.values() for p in layer.parameters()}  # shared for now, then replaced
    twin = copy.deepcopy(unet, kept)
    for name, layer in linear.items():
        parent, _, own = name.rpartition(".")
        setattr(twin.get_submodule(parent), own, _quantize(layer, kind, device))
    return twin.to(device).requires_grad_(False).train(unet.training)


def _quantize(layer: nn.Linear, kind: Kind, device: torch.device) -> nn.Module:
    """One layer; the weight is quantised as it arrives on the device."""
    bnb = _bitsandbytes()
    shape, weight = (layer.in_features, layer.out_features), layer.weight.detach()
    with torch.device("meta"):
        if kind == "nf4":
            made = bnb.nn.Linear4bit(*shape, layer.bias is not None, compute_dtype=weight.dtype, quant_type="nf4")
        else:
            made = bnb.nn.Linear8bitLt(*shape, layer.bias is not None, has_fp16_weights=False)
    if kind == "nf4":
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        made.support_avx512bf16_for_cpu = False  # else a call on the CPU repacks the weight, beyond `dequantized`
    else:
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return made.to(device)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModelError(
            "base.quantize needs bitsandbytes, which is not installed: pip install 'adapter-mu[gpu]', or set it to none"
        ) from error
    return bitsandbytes


def dequantized(layer: Any) -> Tensor:
    """The layer's weight as an ordinary matrix, shape (out, in).

    Raises:
        ModelError: a kind of layer that is neither `Linear4bit` nor `Linear8bitLt`.
    """
    if hasattr(layer, "dequantized_weight"):
        own: Tensor = layer.dequantized_weight()
        return own
    import bitsandbytes.functional as functional

    kind = {base.__name__ for base in type(layer).__mro__}
    if "Linear4bit" in kind:
        weight: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight
    if "Linear8bitLt" in kind:
        state, stored = layer.state, layer.weight
        codes, scales = (state.CB, state.SCB) if state.CB is not None else (stored.CB, stored.SCB)
        matrix: Tensor = functional.int8_vectorwise_dequant(codes, scales)
        return matrix
    raise ModelError(f"{type(layer).__name__} is no quantised layer that adapter_mu knows: use nf4 or int8")
