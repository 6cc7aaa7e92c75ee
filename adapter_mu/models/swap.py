"""The same pipeline around another UNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapter_mu.models.load import LoadedModel


def with_unet(model: LoadedModel, unet: Any) -> LoadedModel:
    """`model` with `unet` in place of its own; the other parts are shared, the given model is not changed."""
    return replace(model, pipeline=type(model.pipeline).from_pipe(model.pipeline, unet=unet))
