"""Copies of modules that share their weights: an attack may rebuild its copy and leave the original alone."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def sharing_copy(module: Module) -> Module:
    """Submodules of its own, parameters and buffers of the original: no memory, as long as those are not trained."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
