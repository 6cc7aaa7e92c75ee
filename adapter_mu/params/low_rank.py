"""Exact low-rank edits: what closed-form methods (UCE, RECE) return, factors per weight and nothing to fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapter_mu.errors import RecipeError
from adapter_mu.params.dense import working_dtype


class LowRank:
    """Merged weight W + up @ down with factors of any rank per layer; LoRA's with alpha equal to the rank."""

    kind = "low_rank"

    def __init__(self, module: nn.Module, subset: str, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take the factors as they are.

        Args:
            module: the base; referred to, neither changed nor copied.
            subset: what to call the edited weights in reports and metadata.
            factors: (down, up) by the name of a Linear or Conv2d layer: (rank, in, *kernel) and (out, rank, *ones).

        Raises:
            RecipeError: no factors, an unknown layer, or factors that do not compose to its weight.
        """
        if not factors:
            raise RecipeError("a low-rank edit needs at least one pair of factors")
        self.subset = subset
        self._base: dict[str, nn.Parameter] = {}
        self._theta: dict[str, Tensor] = {}
        for layer, (down, up) in factors.items():
            weight = _weight(module, layer)
            composed = (up.shape[0], *down.shape[1:])
            if composed != tuple(weight.shape) or up.flatten(1).shape[1] != down.shape[0]:
                raise RecipeError(
                    f"factors {tuple(up.shape)} and {tuple(down.shape)} do not make the weight of {layer!r},"
                    f" which is {tuple(weight.shape)}"
                )
            self._base[layer] = weight
            for name, factor in zip(factor_names(layer), (down, up), strict=True):
                kept = factor.detach().to(device=weight.device, dtype=working_dtype(weight), copy=True)
                self._theta[name] = kept.requires_grad_(True)

    def parameters(self) -> dict[str, Tensor]:
        """Theta: leaf tensors `<module>.lora_A.weight` and `<module>.lora_B.weight`, always the same objects."""
        return dict(self._theta)

    def materialize(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights by module parameter name, in theta's dtype; differentiable in theta."""
        merged = {}
        for layer, weight in self._base.items():
            down, up = (theta[name] for name in factor_names(layer))
            delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            merged[f"{layer}.weight"] = weight.detach().to(delta.dtype) + delta
        return merged

    def state_dict(self) -> dict[str, Tensor]:
        """The factors, without gradients."""
        return {name: theta.detach() for name, theta in self._theta.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the factors, in place."""
        for name, theta in self._theta.items():
            theta.copy_(state[name])

    def metadata(self) -> dict[str, str]:
        """What `load_adapter` needs besides the tensors."""
        return {"kind": self.kind, "subset": self.subset}


def factor_names(layer: str) -> tuple[str, str]:
    """Names of a layer's down and up factor in an adapter's state."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


def pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) by layer from a state; KeyError for a factor without its partner."""
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    layers |= {name.removesuffix(".lora_B.weight") for name in tensors if name.endswith(".lora_B.weight")}
    return {layer: (tensors[factor_names(layer)[0]], tensors[factor_names(layer)[1]]) for layer in sorted(layers)}


def _weight(module: nn.Module, layer: str) -> nn.Parameter:
    owner = dict(module.named_modules()).get(layer)
    if not isinstance(owner, nn.Linear | nn.Conv2d):
        raise RecipeError(f"the model has no Linear or Conv2d layer {layer!r}: was the edit made for another model?")
    return module.get_parameter(f"{layer}.weight")
