"""Calling a module with some of its parameters replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.errors import UserError
from adapter_mu.params.streaming import Place, bring, fetches


class Factors(dict[str, Tensor]):
    """Parameters of another module, which stands in for the one that is called."""

    def __init__(self, module: nn.Module, params: Mapping[str, Tensor]) -> None:
        super().__init__(params)
        self.module = module


def call_with(module: nn.Module, params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """`module(*args, **kwargs)` with `params` (full parameter names) in place of its own; the rest stay as they are.

    Differentiable in `params`. Each is brought to the device and dtype of the parameter it replaces, so that fp32
    adapters, perhaps on the CPU, serve a half-precision base: at once, or by its layer (see `streamed`). `Factors`
    bring the module to call with them.

    Raises:
        UserError: the module has no parameter of that name, or one of another shape.
    """
    if isinstance(params, Factors):
        module = params.module
    own, fetched = dict(module.named_parameters()), fetches(module)
    replaced = {}
    for name, tensor in params.items():
        # functional_call itself would take an unknown name without a word.
        if name not in own:
            raise UserError(f"the module has no parameter {name!r}: was the adapter made for another model?")
        if own[name].shape != tensor.shape:
            raise UserError(
                f"parameter {name!r} has shape {tuple(own[name].shape)} but {tuple(tensor.shape)} was given: "
                "was the adapter made for another model?"
            )
        replaced[name] = tensor if name in fetched else bring(tensor, Place.of(own[name]))
    return torch.func.functional_call(module, replaced, args, kwargs)
