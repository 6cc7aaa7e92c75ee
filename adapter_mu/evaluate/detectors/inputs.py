"""Pictures in any of the forms people have them in, as RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from adapter_mu.errors import UserError

Pictures = Tensor | Sequence[Any]
"""A tensor (N, 3, H, W) in [0, 1], or a sequence of PIL images, RGB arrays (H, W, 3), tensors (3, H, W) and paths."""


def as_arrays(pictures: Pictures) -> list[NDArray[np.uint8]]:
    """RGB arrays (H, W, 3), one a picture.

    Raises:
        UserError: a file is missing or no picture, or something else is none.
    """
    return [_as_array(picture) for picture in pictures]


def as_images(pictures: Pictures) -> list[Image.Image]:
    """PIL images in RGB, one a picture; UserError as in `as_arrays`."""
    return [Image.fromarray(array) for array in as_arrays(pictures)]


def as_tensor(pictures: Pictures) -> Tensor:
    """(N, 3, H, W) in [0, 1] from pictures of one size; UserError when they differ, or as in `as_arrays`."""
    if isinstance(pictures, Tensor):
        return pictures
    arrays = as_arrays(pictures)
    if len(sizes := sorted({array.shape for array in arrays})) > 1:
        raise UserError(f"Pictures of {sizes[0][:2]} and {sizes[1][:2]} pixels cannot be read together; use one size.")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255


def _as_array(picture: Any) -> NDArray[np.uint8]:
    if isinstance(picture, str | Path):
        picture = _open(Path(picture))
    if isinstance(picture, Image.Image):
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if isinstance(picture, Tensor) and picture.dim() == 3 and len(picture) == 3:
        return (picture.detach().float().cpu().clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        return np.asarray(Image.fromarray(picture).convert("RGB"))
    raise UserError(
        "A picture must be a file, a PIL image, an array (H, W, 3) of uint8 or a tensor (3, H, W) in [0, 1]; "
        f"{type(picture).__name__} of shape {tuple(getattr(picture, 'shape', ()))} is none of them."
    )


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"There is no picture {path}; correct the path.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); remove it or save it again.") from None
