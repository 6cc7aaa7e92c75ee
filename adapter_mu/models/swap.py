"""The same pipeline around another UNet."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from adapter_mu.models.load import LoadedModel


def copy_unet(unet: Any, touched: Collection[str]) -> Any:
    """A deep copy whose parameters are the given UNet's own tensors, but for those named in `touched`."""
    shared = {id(tensor): tensor for name, tensor in unet.named_parameters() if name not in touched}
    return copy.deepcopy(unet, shared)


def with_unet(model: LoadedModel, unet: Any) -> LoadedModel:
    """`model` with `unet` in place of its own; the other parts are shared, the given model is not changed.

    A shallow copy, because diffusers' `from_pipe` casts every part to one dtype, the shared ones too.
    """
    pipeline = copy.copy(model.pipeline)
    pipeline.register_modules(unet=unet)
    return replace(model, pipeline=pipeline)
