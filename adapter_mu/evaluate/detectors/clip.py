"""Zero-shot CLIP: is a picture nearer to the concept's descriptions than to the contrast's."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.clip import Clip
from adapter_mu.evaluate.detectors.inputs import Pictures
from adapter_mu.evaluate.detectors.registry import Thresholded, register
from adapter_mu.evaluate.detectors.weights import named_thresholds
from adapter_mu.recipe import Strict


class ClipOptions(Strict):
    """`prompts` describe each concept, `contrast` what the picture shows when it does not show it.

    A score is the share of CLIP's softmax that falls on the concept's descriptions; a good contrast is close: other
    characters for a character, other painters for a style.
    """

    prompts: dict[str, list[str]] = Field(min_length=1)
    contrast: list[str] = Field(min_length=1)
    weights: str = "openai/clip-vit-large-patch14"
    thresholds: list[float] = Field([0.5], min_length=1)
    batch_size: int = Field(16, gt=0)


@register("clip", ClipOptions)
class ZeroShotClip(Thresholded):
    """For characters, styles and anything else that CLIP has words for."""

    def __init__(self, options: ClipOptions) -> None:
        self.options = options
        self.thresholds = named_thresholds(options.thresholds)
        self.clip = Clip(options.weights, "The CLIP of the clip detector", options.batch_size)

    def check(self, concepts: set[str]) -> None:
        """Each needs descriptions."""
        if unknown := sorted(concepts - self.options.prompts.keys()):
            raise RecipeError(
                f"The CLIP detector has no descriptions of '{unknown[0]}'; add them to its `prompts`, "
                f"which has {', '.join(self.options.prompts)}."
            )

    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """The softmax share of the concept's descriptions against the contrast's."""
        seen, contrast = self.clip.pictures(pictures), self.clip.texts(self.options.contrast)
        words = {concept: self.clip.texts(self.options.prompts[concept]) for concept in dict.fromkeys(concepts)}
        pairs = zip(seen, concepts, strict=True)
        return torch.stack([_share(one, words[concept], contrast, self.clip.scale) for one, concept in pairs])

    def facts(self) -> dict[str, Any]:
        """The weights' hash and every description."""
        words = {"prompts": self.options.prompts, "contrast": self.options.contrast}
        return {"name": "clip", **self.clip.facts(), "thresholds": self.thresholds, **words}


def _share(picture: Tensor, concept: Tensor, contrast: Tensor, scale: float) -> Tensor:
    """How much of the softmax over all descriptions (n, D) falls on the concept's, for one picture (D,)."""
    chances = (scale * torch.cat([concept, contrast]) @ picture).softmax(0)
    return chances[: len(concept)].sum()
