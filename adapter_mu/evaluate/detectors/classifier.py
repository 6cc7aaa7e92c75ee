"""Any image classifier that transformers can load: objects, characters, styles."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.clip import best_device, read_model, read_processor
from adapter_mu.evaluate.detectors.inputs import Pictures, as_images
from adapter_mu.evaluate.detectors.registry import register
from adapter_mu.evaluate.detectors.weights import find_folder, named_thresholds, weights_hash
from adapter_mu.recipe import Strict


class ClassifierOptions(Strict):
    """`weights` is a folder or hub id; `labels` gives each concept its label where the two differ.

    A picture counts when the label is among the `top` most likely ones (1 for objects, 3 for styles are usual), or,
    with `thresholds`, when its probability is above them.
    """

    weights: str
    labels: dict[str, str] = {}
    top: int = Field(1, gt=0)
    thresholds: list[float] = []
    batch_size: int = Field(16, gt=0)


@register("classifier", ClassifierOptions)
class Classifier:
    """Asked for its labels, or for the concepts that `labels` translates."""

    def __init__(self, options: ClassifierOptions) -> None:
        self.options = options
        self.thresholds = named_thresholds(options.thresholds)
        self.folder = find_folder(options.weights, "The classifier")

    def check(self, concepts: set[str]) -> None:
        """Each concept's label must be one of the classifier's."""
        for concept in sorted(concepts):
            if self._label(concept) not in self._numbers:
                some = ", ".join(list(self._numbers)[:8])
                raise RecipeError(
                    f"The classifier has no label '{self._label(concept)}'; name one in `labels` (it has {some} ...)."
                )

    def found(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """The label is among the `top`, or its probability above the first threshold."""
        chances, asked = self._chances(pictures), self._asked(concepts)
        if self.thresholds:
            return chances.gather(1, asked)[:, 0] > next(iter(self.thresholds.values()))
        return (chances.topk(self.options.top, dim=1).indices == asked).any(dim=1)

    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """The label's probability."""
        return self._chances(pictures).gather(1, self._asked(concepts))[:, 0]

    def facts(self) -> dict[str, Any]:
        """The weights' hash, the labels and the rule."""
        own = {"weights": self.options.weights, "hash": weights_hash(self.folder), "labels": self.options.labels}
        return {"name": "classifier", **own, "top": self.options.top, "thresholds": self.thresholds}

    def _label(self, concept: str) -> str:
        return self.options.labels.get(concept, concept)

    def _asked(self, concepts: list[str]) -> Tensor:
        return torch.tensor([[self._numbers[self._label(concept)]] for concept in concepts])

    @torch.no_grad()
    def _chances(self, pictures: Pictures) -> Tensor:
        size = self.options.batch_size
        parts = (as_images(pictures[start : start + size]) for start in range(0, len(pictures), size))
        pixels = (self._processor(images=part, return_tensors="pt")["pixel_values"] for part in parts)
        return torch.cat([self._model(pixel_values=part.to(best_device())).logits.softmax(1).cpu() for part in pixels])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {str(label): int(number) for number, label in self._model.config.id2label.items()}

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForImageClassification

        return read_model(AutoModelForImageClassification, self.folder)

    @cached_property
    def _processor(self) -> Any:
        return read_processor(self.folder)
