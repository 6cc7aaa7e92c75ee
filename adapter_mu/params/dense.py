"""A dense delta: the weights of a subset, free to move."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapter_mu.params.subsets import select


def working_dtype(tensor: Tensor) -> torch.dtype:
    """What an adapter computes in: fp32, or float64 over a float64 base."""
    return torch.promote_types(tensor.dtype, torch.float32)


class DenseDelta:
    """Trains merged weights theta; saves theta - base. Biases and norms of the subset move too."""

    kind = "dense"

    def __init__(self, module: nn.Module, subset: str, device: torch.device | None = None) -> None:
        """Theta starts at the base, which is referred to, not copied; RecipeError if the subset is empty.

        `device`: where theta lies; None: where the base does.
        """
        self.subset = subset
        self._base = select(module, subset)
        self._theta = {
            name: base.detach().to(device or base.device, working_dtype(base), copy=True).requires_grad_(True)
            for name, base in self._base.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """Theta: leaf tensors under the module's parameter names, always the same objects."""
        return dict(self._theta)

    def materialize(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged weights by module parameter name: theta itself."""
        return dict(theta)

    def state_dict(self) -> dict[str, Tensor]:
        """Theta - base under the module's parameter names.

        Adding the base again may round: to resume to the same bits, keep `parameters()` instead.
        """
        return {
            name: theta.detach() - self._base[name].detach().to(theta.device) for name, theta in self._theta.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set theta to base + delta, in place."""
        for name, theta in self._theta.items():
            theta.copy_(self._base[name].to(theta) + state[name].to(theta))

    def metadata(self) -> dict[str, str]:
        """What `load_adapter` needs besides the tensors."""
        return {"kind": self.kind, "subset": self.subset}
