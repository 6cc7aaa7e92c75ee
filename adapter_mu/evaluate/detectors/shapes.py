"""The embedded world's classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapter_mu import __version__
from adapter_mu.data.cache import fingerprint
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.detectors.inputs import Pictures, as_tensor
from adapter_mu.evaluate.detectors.registry import register
from adapter_mu.recipe import Strict
from adapter_mu.shapes.detector import load_shapes_detector
from adapter_mu.shapes.draw import RESOLUTION
from adapter_mu.shapes.vocabulary import SHAPES

BATCH = 256


class ShapesOptions(Strict):
    """None: it reads what its world can show."""


@register("shapes", ShapesOptions)
class ShapesWorld:
    """The embedded world's classifier: a picture shows a shape when that class is the most likely one."""

    def __init__(self, options: ShapesOptions | None = None) -> None:
        self.network = load_shapes_detector()
        self.thresholds: dict[str, float] = {}

    def check(self, concepts: set[str]) -> None:
        """Only the world's shapes are known."""
        if unknown := sorted(concepts - set(SHAPES)):
            raise RecipeError(
                f"The shapes detector does not know '{unknown[0]}'; `shows` must be one of {', '.join(SHAPES)}."
            )

    def found(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """The most likely shape (or "nothing") equals the concept."""
        return self._shares(pictures).argmax(1) == _asked(concepts)

    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """How likely the concept's shape is, (N,)."""
        return self._shares(pictures).gather(1, _asked(concepts)[:, None])[:, 0]

    def facts(self) -> dict[str, Any]:
        """The network's fingerprint."""
        return {"name": "shapes", "version": __version__, "hash": fingerprint(self.network), "thresholds": {}}

    @torch.no_grad()
    def _shares(self, pictures: Pictures) -> Tensor:
        tensor = as_tensor(pictures)
        if tensor.shape[-1] != RESOLUTION:
            raise RecipeError(
                f"The shapes detector reads {RESOLUTION}x{RESOLUTION} pictures; use it with a shapes base."
            )
        return torch.cat([self.network(part.float())["shape"].softmax(1) for part in tensor.split(BATCH)])


def _asked(concepts: list[str]) -> Tensor:
    return torch.tensor([SHAPES.index(concept) for concept in concepts])
