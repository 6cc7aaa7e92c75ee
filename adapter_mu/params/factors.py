"""Pairs of low-rank factors on the Linear and Conv2d layers of a base, under peft's names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapter_mu.params.dense import working_dtype


class FactorPairs:
    """Merged weight W + scale * up @ down for every layer that has a pair; what LoRA and closed-form edits share."""

    def __init__(
        self,
        subset: str,
        base: Mapping[str, nn.Parameter],
        factors: Mapping[str, tuple[Tensor, Tensor]],
        scale: float,
        device: torch.device | None = None,
    ) -> None:
        """Copy the factors, one pair for each weight, in working precision.

        Args:
            subset: what to call the weights in reports and metadata.
            base: weights by layer name; referred to, neither changed nor copied.
            factors: (down, up) by layer name: (rank, in, *kernel) and (out, rank, *ones).
            scale: of every product.
            device: where they go; None: where their weights are.
        """
        self.subset, self._base, self._scale = subset, dict(base), scale
        self._theta: dict[str, Tensor] = {}
        for layer, weight in self._base.items():
            for name, factor in zip(factor_names(layer), factors[layer], strict=True):
                kept = factor.detach().to(device or weight.device, working_dtype(weight), copy=True)
                self._theta[name] = kept.requires_grad_(True)

    def parameters(self) -> dict[str, Tensor]:
        """Theta: leaf tensors `<module>.lora_A.weight` and `<module>.lora_B.weight`, always the same objects."""
        return dict(self._theta)

    def materialize(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights by module parameter name, in theta's dtype; differentiable in theta."""
        merged = {}
        for layer, weight in self._base.items():
            down, up = (theta[name] for name in factor_names(layer))
            # A convolution's B is 1x1, so the composed kernel is a matrix product over flattened kernels.
            delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            merged[f"{layer}.weight"] = weight.detach().to(delta) + self._scale * delta
        return merged

    def state_dict(self) -> dict[str, Tensor]:
        """The factors, without gradients."""
        return {name: theta.detach() for name, theta in self._theta.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the factors, in place."""
        for name, theta in self._theta.items():
            theta.copy_(state[name])


def factor_names(layer: str) -> tuple[str, str]:
    """Names of a layer's down and up factor in an adapter's state."""
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


def pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) by layer from a state; KeyError for a factor without its partner."""
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    layers |= {name.removesuffix(".lora_B.weight") for name in tensors if name.endswith(".lora_B.weight")}
    return {layer: (tensors[factor_names(layer)[0]], tensors[factor_names(layer)[1]]) for layer in sorted(layers)}
