"""Detectors behind one protocol: pictures and the concept each should show go in, found or not comes out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from adapter_mu.errors import RecipeError
from adapter_mu.shapes.detector import load_shapes_detector, read
from adapter_mu.shapes.draw import RESOLUTION
from adapter_mu.shapes.vocabulary import SHAPES


class Detector(Protocol):
    """Tells whether a picture shows a concept."""

    def check(self, concepts: set[str]) -> None:
        """RecipeError when a concept is none this detector knows."""

    def found(self, pictures: Tensor, concepts: list[str]) -> Tensor:
        """(N,) booleans for pictures (N, 3, H, W) in [0, 1] and the concept asked of each."""


class ShapesWorld:
    """The embedded world's classifier: a picture shows a shape when that class is the most likely one."""

    def __init__(self) -> None:
        self.network = load_shapes_detector()

    def check(self, concepts: set[str]) -> None:
        """Only the world's shapes are known."""
        if unknown := sorted(concepts - set(SHAPES)):
            raise RecipeError(
                f"The shapes detector does not know '{unknown[0]}'; `shows` must be one of {', '.join(SHAPES)}."
            )

    def found(self, pictures: Tensor, concepts: list[str]) -> Tensor:
        """The most likely shape (or "nothing") equals the concept."""
        if pictures.shape[-1] != RESOLUTION:
            raise RecipeError(
                f"The shapes detector reads {RESOLUTION}x{RESOLUTION} pictures; use it with a shapes base."
            )
        seen = torch.cat([read(self.network, part)["shape"] for part in pictures.split(256)])
        return seen == torch.tensor([SHAPES.index(concept) for concept in concepts])


DETECTORS = {"shapes": ShapesWorld}


def new_detector(name: str) -> Detector:
    """The detector by name; RecipeError when there is none."""
    if name not in DETECTORS:
        raise RecipeError(f"There is no detector '{name}'; choose one of {', '.join(DETECTORS)}.")
    return DETECTORS[name]()
