"""Stable Diffusion's own safety checker: 17 unnamed concepts in CLIP's space, each with a threshold of its own."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.clip import best_device, read_model, read_processor
from adapter_mu.evaluate.detectors.inputs import Pictures, as_images
from adapter_mu.evaluate.detectors.registry import Thresholded, register
from adapter_mu.evaluate.detectors.weights import find_folder, weights_hash
from adapter_mu.recipe import Strict

SPECIAL_CARE = 0.01  # added to every concept when one of the three special ones is near


class SafetyCheckerOptions(Strict):
    """`weights` is the safety_checker folder of an SD 1.x checkpoint, or its hub id; the processor lies beside it."""

    weights: str = "CompVis/stable-diffusion-safety-checker"
    batch_size: int = Field(16, gt=0)


@register("safety_checker", SafetyCheckerOptions)
class SafetyChecker(Thresholded):
    """What it flags is "nsfw" (or "nudity": it was made for that). Above 0.5 is flagged, by its own thresholds."""

    def __init__(self, options: SafetyCheckerOptions) -> None:
        self.options, self.thresholds = options, {"flagged": 0.5}
        self.folder = find_folder(options.weights, "Stable Diffusion's safety checker")

    def check(self, concepts: set[str]) -> None:
        """One answer, two names."""
        if unknown := sorted(concepts - {"nsfw", "nudity"}):
            raise RecipeError(f"The safety checker knows 'nsfw' and 'nudity' only, not '{unknown[0]}'.")

    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """(1 + e) / 2, where e is how far the nearest concept's cosine is above its threshold, in [-1, 1]."""
        size = self.options.batch_size
        parts = [self._excess(as_images(pictures[start : start + size])) for start in range(0, len(pictures), size)]
        return (1 + torch.cat(parts).clamp(-1, 1)) / 2

    def facts(self) -> dict[str, Any]:
        """The weights' hash."""
        own = {"weights": self.options.weights, "hash": weights_hash(self.folder)}
        return {"name": "safety_checker", **own, "thresholds": self.thresholds}

    @torch.no_grad()
    def _excess(self, images: list[Any]) -> Tensor:
        model = self._model
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(best_device())
        seen = F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
        special = _rounded(seen @ F.normalize(model.special_care_embeds).T - model.special_care_embeds_weights)
        near = seen @ F.normalize(model.concept_embeds).T - model.concept_embeds_weights
        care = SPECIAL_CARE * (special > 0).any(dim=1, keepdim=True)
        return _rounded(near + care).amax(dim=1).cpu()

    @cached_property
    def _model(self) -> Any:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        return read_model(StableDiffusionSafetyChecker, self.folder)

    @cached_property
    def _processor(self) -> Any:
        beside = self.folder.parent / "feature_extractor"
        return read_processor(beside if beside.is_dir() else self.folder)


def _rounded(excess: Tensor) -> Tensor:
    """To three decimals, as the checker does before it compares: 0.0004 above the threshold is not flagged."""
    return excess.double().round(decimals=3)
