"""The registry of methods and the protocol of the gradient ones."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.models import LoadedModel


class GradientMethod(Protocol):
    """A method whose unlearning loss is minimised step by step (ESD, SDD)."""

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Compute what needs the frozen base only, once; results are cached in `folder`."""

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """The unlearning loss at the UNet weights `params`, a scalar; its batch depends only on (seed, step)."""


Factory = TypeVar("Factory", bound=Callable[[Any], GradientMethod])
_METHODS: dict[str, tuple[type[BaseModel], Callable[[Any], GradientMethod]]] = {}


def register(name: str, options: type[BaseModel]) -> Callable[[Factory], Factory]:
    """Class decorator: make a method available to recipes as `name`, called with its `options`, checked by pydantic.

    Raises:
        UserError: another method has that name.
    """

    def add(factory: Factory) -> Factory:
        if name in _METHODS:
            raise UserError(f"Two methods are registered as '{name}'; rename or uninstall one.")
        _METHODS[name] = (options, factory)
        return factory

    return add


def _load() -> None:
    """Import our own method files and those that installed packages announce as `adapter_mu.methods`."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"adapter_mu.methods.{module.name}")
    for entry in entry_points(group="adapter_mu.methods"):
        entry.load()


def method_names() -> list[str]:
    """Every registered method."""
    _load()
    return sorted(_METHODS)


def new_method(name: str, options: Mapping[str, Any]) -> GradientMethod:
    """The method `name` with its options; RecipeError for an unknown name or option."""
    if name not in (names := method_names()):
        raise RecipeError(f"There is no method '{name}'; choose one of {', '.join(names)}.")
    kind, factory = _METHODS[name]
    try:
        return factory(kind.model_validate(dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["method", *map(str, first["loc"])])
        wrong = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise RecipeError(f"'{place}': {wrong}; method {name} takes {', '.join(kind.model_fields)}.") from None
