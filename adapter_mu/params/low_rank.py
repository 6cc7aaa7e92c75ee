"""Exact low-rank edits: what closed-form methods (UCE, RECE) return, factors per weight and nothing to fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adapter_mu.errors import RecipeError
from adapter_mu.params.factors import FactorPairs


class LowRank(FactorPairs):
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
        base = {layer: _weight(module, layer) for layer in factors}
        for layer, (down, up) in factors.items():
            weight = base[layer]
            composed = (up.shape[0], *down.shape[1:])
            if composed != tuple(weight.shape) or up.flatten(1).shape[1] != down.shape[0]:
                raise RecipeError(
                    f"factors {tuple(up.shape)} and {tuple(down.shape)} do not make the weight of {layer!r},"
                    f" which is {tuple(weight.shape)}"
                )
        super().__init__(subset, base, factors, scale=1.0)

    def metadata(self) -> dict[str, str]:
        """What `load_adapter` needs besides the tensors."""
        return {"kind": self.kind, "subset": self.subset}


def _weight(module: nn.Module, layer: str) -> nn.Parameter:
    owner = dict(module.named_modules()).get(layer)
    if not isinstance(owner, nn.Linear | nn.Conv2d):
        raise RecipeError(f"the model has no Linear or Conv2d layer {layer!r}: was the edit made for another model?")
    return module.get_parameter(f"{layer}.weight")
