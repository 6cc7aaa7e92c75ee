"""A CLIP from a local folder: unit vectors for pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adapter_mu.errors import ModelError
from adapter_mu.evaluate.detectors.inputs import Pictures, as_images
from adapter_mu.evaluate.detectors.weights import find_folder, weights_hash

_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)


class Clip:
    """CLIP of a local folder or of a hub id in the local cache; its weights are read when first needed.

    Args:
        weights: the folder or hub id.
        what: who asks for it, for the sentence when it is not here.
        batch_size: pictures or texts at a time.

    Raises:
        ModelError: it is not on this machine.
    """

    def __init__(self, weights: str, what: str, batch_size: int = 16) -> None:
        self.weights, self.batch_size = weights, batch_size
        self.folder = find_folder(weights, what)

    def pictures(self, pictures: Pictures) -> Tensor:
        """Unit vectors (N, D)."""
        return F.normalize(self.features(pictures), dim=1)

    def features(self, pictures: Pictures) -> Tensor:
        """The same before they are scaled, (N, D)."""
        parts = [pictures[start : start + self.batch_size] for start in range(0, len(pictures), self.batch_size)]
        return torch.cat([self._features(as_images(part)) for part in parts])

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D); what is longer than CLIP reads is cut."""
        parts = [list(texts[start : start + self.batch_size]) for start in range(0, len(texts), self.batch_size)]
        return torch.cat([self._texts(part) for part in parts])

    @property
    def scale(self) -> float:
        """What cosines are multiplied with before a softmax: 100 in OpenAI's models."""
        return float(self._model.logit_scale.detach().exp())

    @property
    def width(self) -> int:
        """D, the length of the vectors."""
        return int(self._model.config.projection_dim)

    def facts(self) -> dict[str, str]:
        """Where it was read, and the hash of its weights."""
        return {"weights": self.weights, "hash": weights_hash(self.folder)}

    @torch.no_grad()
    def _features(self, images: list[Image.Image]) -> Tensor:
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(best_device())
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        features: Tensor = self._model.visual_projection(pooled).cpu()
        return features

    @torch.no_grad()
    def _texts(self, texts: list[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        words = words.to(best_device())
        pooled = self._model.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask).pooler_output
        return F.normalize(self._model.text_projection(pooled), dim=1).cpu()

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPModel

        return read_model(CLIPModel, self.folder)

    @cached_property
    def _processor(self) -> Any:
        return read_processor(self.folder)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return read(CLIPTokenizer, self.folder)


def read(kind: Any, folder: Path, **options: Any) -> Any:
    """What `kind.from_pretrained` makes of a local folder; ModelError when it cannot read it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except _READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"transformers cannot read {folder} as {kind.__name__}: {reason}") from None


def read_model(kind: Any, folder: Path) -> Any:
    """A frozen model in fp32, on the GPU where there is one; ModelError as for `read`."""
    model = read(kind, folder, use_safetensors=True, dtype=torch.float32)
    return model.eval().requires_grad_(False).to(best_device())


def best_device() -> str:
    """Where detectors run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_processor(folder: Path) -> Any:
    """The folder's picture preparation, always PIL's: torchvision's differs a little, and with it every score."""
    from transformers import AutoImageProcessor

    return read(AutoImageProcessor, folder, backend="pil")
