"""Low-rank adapters over the Linear and Conv2d layers of a subset, with peft's factors and names."""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor, nn

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.params.factors import FactorPairs, factor_names, pairs
from adapter_mu.params.subsets import select


class Lora(FactorPairs):
    """Trains factors A and B; the merged weight is W + (alpha / rank) B A (Hu et al., 2021, section 4.1).

    Biases, norms and other parameters of the subset stay where they are: train them with a dense adapter.
    """

    kind = "lora"

    def __init__(
        self,
        module: nn.Module,
        subset: str,
        rank: int,
        alpha: float | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Fresh factors as peft draws them: A Kaiming-uniform from `seed`, B zero, so that nothing changes yet.

        Args:
            module: the base; referred to, neither changed nor copied.
            subset: see `adapter_mu.params.subsets.select`.
            rank: inner dimension of every pair of factors, >= 1.
            alpha: the merged delta is scaled by alpha / rank; None means alpha = rank.
            seed: of the draw, which does not touch the global random state.
            device: where the factors go; None: where the module is.

        Raises:
            RecipeError: bad rank or alpha, or a subset without a Linear or Conv2d weight.
            ModelError: a grouped convolution in the subset.
        """
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        if rank < 1 or not self.alpha > 0:
            raise RecipeError(f"LoRA rank {rank} with alpha {self.alpha:g}: both must be positive")
        base = _layers(module, subset)
        drawn = pairs(_peft_factors(module, list(base), rank, self.alpha, seed))
        super().__init__(subset, base, drawn, self.alpha / rank, device)

    def metadata(self) -> dict[str, str]:
        """What `load_adapter` needs besides the tensors."""
        return {"kind": self.kind, "subset": self.subset, "rank": str(self.rank), "alpha": repr(self.alpha)}


def _layers(module: nn.Module, subset: str) -> dict[str, nn.Parameter]:
    """Weights that take a pair of factors, by the name of their layer."""
    layers: dict[str, nn.Parameter] = {}
    for name, parameter in select(module, subset).items():
        layer, _, leaf = name.rpartition(".")
        owner = module.get_submodule(layer)
        if leaf == "weight" and isinstance(owner, nn.Linear | nn.Conv2d):
            if isinstance(owner, nn.Conv2d) and owner.groups > 1:
                raise ModelError(f"{layer} is a grouped convolution, which LoRA does not cover: use a dense adapter")
            layers[layer] = parameter
    if not layers:
        raise RecipeError(f"subset {subset!r} has no Linear or Conv2d weight for LoRA: use a dense adapter")
    return layers


def _peft_factors(module: nn.Module, layers: list[str], rank: int, alpha: float, seed: int) -> dict[str, Tensor]:
    """The factors that peft makes for these layers, drawn on the CPU in the order of the module's layers."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, layers)),  # a list would match suffixes of names
    )
    skeleton = inject_adapter_in_model(config, _skeleton(module), low_cpu_mem_usage=True)
    factors: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in skeleton.named_modules():
            if isinstance(layer, LoraLayer):
                pair = layer.lora_A["default"].to_empty(device="cpu"), layer.lora_B["default"].to_empty(device="cpu")
                layer.reset_lora_parameters("default", True)
                factors |= dict(zip(factor_names(name), (part.weight for part in pair), strict=True))
    return factors


def _skeleton(module: nn.Module) -> nn.Module:
    """A deep copy whose parameters are on the meta device: structure without memory."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in module.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    return copy.deepcopy(module, memo)
