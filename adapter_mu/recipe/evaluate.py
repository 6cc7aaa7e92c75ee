"""How a model is scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from adapter_mu.recipe.data import Prompts
from adapter_mu.recipe.strict import Strict

DetectorChoice = str | dict[str, Any]
"""A detector's name, or a mapping with its name and its options: {name: nudenet, classes: strict}."""


class Quality(Strict):
    """How good the pictures are apart from the concept; a recipe may give the list of measures alone.

    `prompts` are the benign ones unless others are given (COCO captions, say); `guidance` is `usual_guidance`.
    `reference` is a folder of real pictures for FID and KID; without it the base's own pictures of the same prompts
    with other noise stand for them. `features` is what FID and KID compare: "shapes", "inception", "clip", or "auto":
    the shapes detector's where it scores, Inception's where torchvision and torch-fidelity are installed, else CLIP's.
    `clip` is the CLIP of clip_score and of CLIP features: a local folder or a hub id in the local cache.
    """

    measures: list[Literal["clip_score", "fid", "kid", "lpips"]]
    prompts: Prompts | None = None
    guidance: float | None = Field(None, ge=0)
    reference: Path | None = None
    features: Literal["auto", "shapes", "inception", "clip"] = "auto"
    clip: str = "openai/clip-vit-base-patch32"

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_enough(cls, value: Any) -> Any:
        return {"measures": value} if isinstance(value, list) else value


class Evaluate(Strict):
    """How scores are taken: the concept's and the benign prompts, at every guidance scale; the worst counts.

    `benign_detector` judges the benign pictures where the concept's detector cannot (NudeNet knows no dogs).
    `usual_guidance` is the scale of headings and of `quality`; with `own_guidance`, prompts that bring a guidance
    scale (a CSV's) are drawn with that one in place of `usual_guidance`, and at the other scales like the rest.
    """

    detector: DetectorChoice
    benign_detector: DetectorChoice | None = None
    concept: Prompts
    benign: Prompts
    guidance: list[float] = Field([1.5, 3.0, 7.5], min_length=1)
    usual_guidance: float = 7.5
    own_guidance: bool = False
    steps: int = Field(50, gt=0)
    batch_size: int = Field(4, gt=0)
    quality: Quality | None = None

    @field_validator("detector", mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        if not isinstance(value.get("name") if isinstance(value, Mapping) else value, str):
            raise ValueError("it must be a detector's name, or a mapping with a name and its options")
        return value

    @field_validator("benign_detector", mode="before")
    @classmethod
    def _is_named_or_absent(cls, value: Any) -> Any:
        return value if value is None else cls._is_named(value)

    @model_validator(mode="after")
    def _own_guidance_has_its_place(self) -> Evaluate:
        if self.own_guidance and self.usual_guidance not in self.guidance:
            raise ValueError("own_guidance takes the place of usual_guidance, which `guidance` does not list; add it")
        return self
