"""Parts of a model that leave its device while they are not needed, or stand in for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adapter_mu.models.load import LoadedModel
from adapter_mu.models.quantized import Kind, quantized_copy
from adapter_mu.models.swap import with_unet

ENCODERS = ("text_encoder", "text_encoder_2", "vae")


@contextmanager
def encoders_at(model: LoadedModel, device: torch.device) -> Iterator[None]:
    """Within, text encoders and VAE lie on `device`."""
    parts = [part for name in ENCODERS if (part := getattr(model.pipeline, name, None)) is not None]
    homes = [part.device for part in parts]
    for part in parts:
        _move(part, device)
    try:
        yield
    finally:
        for part, home in zip(parts, homes, strict=True):
            _move(part, home)


@contextmanager
def on_device(model: LoadedModel, device: torch.device) -> Iterator[None]:
    """Within, the whole model lies on `device`."""
    home = model.device
    with encoders_at(model, device):
        _move(model.unet, device)
        try:
            yield
        finally:
            _move(model.unet, home)


@contextmanager
def quantized_unet(model: LoadedModel, kind: Kind, device: torch.device) -> Iterator[LoadedModel]:
    """The model around a quantised copy of its UNet on `device`; the UNet itself stays where it is.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    yield with_unet(model, quantized_copy(model.unet, kind, device))


def _move(part: Any, device: torch.device) -> None:
    if part.device != device:
        part.to(device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what was freed should be seen to be free
