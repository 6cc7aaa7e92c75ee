"""The protocol of detectors, and their registry."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from adapter_mu.errors import RecipeError, UserError
from adapter_mu.evaluate.detectors.inputs import Pictures


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


Factory = TypeVar("Factory", bound=Callable[[Any], Detector])
_DETECTORS: dict[str, tuple[type[BaseModel], Callable[[Any], Detector]]] = {}
_MADE: dict[str, Detector] = {}


def register(name: str, options: type[BaseModel]) -> Callable[[Factory], Factory]:
    """Class decorator: make a detector available to recipes as `name`, called with its `options`, a pydantic model.

    Raises:
        UserError: another detector has that name.
    """

    def add(factory: Factory) -> Factory:
        if name in _DETECTORS:
            raise UserError(f"Two detectors are registered as '{name}'; rename or uninstall one.")
        _DETECTORS[name] = (options, factory)
        return factory

    return add


def _load() -> None:
    """Import our own detector files and those that installed packages announce as `adapter_mu.detectors`."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    for entry in entry_points(group="adapter_mu.detectors"):
        entry.load()


def detector_names() -> list[str]:
    """Every registered detector."""
    _load()
    return sorted(_DETECTORS)


def new_detector(choice: str | Mapping[str, Any]) -> Detector:
    """The detector by name, or by a mapping of its name and options; equal choices share one, with its weights.

    Raises:
        RecipeError: no such detector, or options it does not take.
        ModelError: its weights are not on this machine.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    key = json.dumps(options, sort_keys=True, default=str)
    if key not in _MADE:
        _MADE[key] = _make(options.pop("name"), options)
    return _MADE[key]


def _make(name: str, options: Mapping[str, Any]) -> Detector:
    if name not in (names := detector_names()):
        raise RecipeError(f"There is no detector '{name}'; choose one of {', '.join(names)}.")
    kind, factory = _DETECTORS[name]
    try:
        return factory(kind.model_validate(options))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["evaluate.detector", *map(str, first["loc"])])
        wrong = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        takes = ", ".join(kind.model_fields) or "no options"
        raise RecipeError(f"'{place}': {wrong}; detector {name} takes {takes}.") from None
