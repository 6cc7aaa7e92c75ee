"""The empty models of a diffusers folder: which tensors its configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adapter_mu.errors import ModelError
from adapter_mu.export.single_file import canonical


def expected_shapes(folder: Path, component: str) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes that a component's configuration asks for, from an empty model."""
    names = empty_model(folder, component).state_dict()
    return {canonical(component, name): tuple(tensor.shape) for name, tensor in names.items()}


def empty_model(folder: Path, component: str) -> Any:
    """The component without memory for its weights; ModelError when its configuration cannot be read."""
    import diffusers
    import transformers

    try:
        with torch.device("meta"):
            if component in ("unet", "vae"):
                kind = diffusers.UNet2DConditionModel if component == "unet" else diffusers.AutoencoderKL
                return kind.from_config(kind.load_config(folder / component))
            kind = transformers.CLIPTextModelWithProjection if component[-1] == "2" else transformers.CLIPTextModel
            return kind(transformers.CLIPTextConfig.from_pretrained(folder / component))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"'{folder / component}' has no readable configuration ({error}); fetch it again.") from error
