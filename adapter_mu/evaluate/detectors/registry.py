"""The protocol of detectors, and their registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from adapter_mu.evaluate.detectors.inputs import Pictures
from adapter_mu.registry import Registry


class Detector(Protocol):
    """Tells whether a picture shows a concept."""

    thresholds: dict[str, float]
    """By name, smallest first: a picture counts when its score is above the first, and the share above each is
    reported. Empty where the detector decides otherwise than by a threshold."""

    def check(self, concepts: set[str]) -> None:
        """RecipeError when a concept is none this detector knows; ModelError when its weights are not here."""

    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """(N,) scores in [0, 1] for the pictures and the concept asked of each."""

    def found(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """(N,) booleans: which pictures show their concept."""

    def facts(self) -> dict[str, Any]:
        """What a score depends on: name, version, hash of the weights, thresholds, classes; plain data."""


class Thresholded:
    """`found` of the detectors that compare a score with a threshold."""

    thresholds: dict[str, float]

    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """The detector's own."""
        raise NotImplementedError

    def found(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """The score is above the first threshold."""
        return self.scores(pictures, concepts) > next(iter(self.thresholds.values()))


DETECTORS: Registry[Detector] = Registry(
    "detector", "evaluate.detector", "adapter_mu.evaluate.detectors", group="adapter_mu.detectors"
)
register = DETECTORS.register
detector_names = DETECTORS.names
_MADE: dict[str, Detector] = {}


def new_detector(choice: str | Mapping[str, Any]) -> Detector:
    """The detector by name, or by a mapping of its name and options; equal choices share one, with its weights.

    Raises:
        RecipeError: no such detector, or options it does not take.
        ModelError: its weights are not on this machine.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    key = json.dumps(options, sort_keys=True, default=str)
    if key not in _MADE:
        _MADE[key] = DETECTORS.make(options.pop("name"), options)
    return _MADE[key]
