"""LoRA factors applied beside the base's layers instead of merged into them.

Merging makes a dense weight for every touched layer, twice when it is differentiated along a direction: for SDXL more
than the whole base. Beside the layer, y = W x + (alpha / rank) B (A x), only the factors move.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.params.functional import Factors
from adapter_mu.params.lora import Lora


class AttachedLora:
    """A LoRA adapter whose `materialize` gives `Factors` for `call_with`; everything else is the adapter's own."""

    def __init__(self, module: nn.Module, lora: Lora) -> None:
        """`module`: the base, set up as it will be used; its layers are copied, its tensors shared."""
        self._lora = lora
        self._module, self._names = _beside(module, lora)

    def __getattr__(self, name: str) -> Any:
        """Whatever the adapter has."""
        return getattr(self._lora, name)

    def materialize(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The factors under the names of the module that applies them; differentiable in theta."""
        return Factors(self._module, {self._names[name]: tensor for name, tensor in theta.items()})


def _beside(module: nn.Module, lora: Lora) -> tuple[nn.Module, dict[str, str]]:
    """A copy of the module with peft's layers, which shares all tensors, and its names for theta's."""
    from peft import LoraConfig, inject_adapter_in_model

    theta = lora.parameters()
    layers = [name.removesuffix(".lora_A.weight") for name in theta if name.endswith(".lora_A.weight")]
    shared = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="|".join(map(re.escape, layers)))
    twin = inject_adapter_in_model(config, twin, low_cpu_mem_usage=True)
    names = {}
    for layer in layers:
        owner = twin.get_submodule(layer)
        weight = owner.get_base_layer().weight
        for half in ("lora_A", "lora_B"):
            factor = getattr(owner, half)["default"]
            # Theta is put in its place at every call; without it the module is the base.
            factor.weight = nn.Parameter(_zeros(factor.weight, weight), requires_grad=False)
            names[f"{layer}.{half}.weight"] = f"{layer}.{half}.default.weight"
    return twin.train(module.training), names


def _zeros(factor: Tensor, weight: Tensor) -> Tensor:
    """Shaped like the factor, on the weight's device and in its dtype (bfloat16 for a quantised weight)."""
    dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
    return torch.zeros(factor.shape, dtype=dtype, device=weight.device)
