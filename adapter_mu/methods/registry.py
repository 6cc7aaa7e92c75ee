"""The registry of methods and what the two kinds of them can do."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ValidationError
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.models import LoadedModel
from adapter_mu.params import Adapter, LowRank


class GradientMethod(Protocol):
    """A method whose unlearning loss is minimised step by step (ESD, SDD)."""

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Compute what needs the frozen base only, once; results are cached in `folder`."""

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """The unlearning loss at the UNet weights `params`, a scalar; its batch depends only on (seed, step)."""


@runtime_checkable
class RememberingMethod(GradientMethod, Protocol):
    """A gradient method with something that changes as training goes on, such as a teacher that follows theta.

    What it remembers is saved with the training state, so that a resumed run ends in the same bytes.
    """

    def follow(self, adapter: Adapter) -> None:
        """Meet the adapter, once after `prepare` and before the first step."""

    def after_step(self, theta: Mapping[str, Tensor]) -> None:
        """See theta after every optimizer step."""

    def state(self) -> dict[str, Tensor]:
        """All that later losses depend on besides theta, the seed and the step."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up where `state` was given."""

    def result(self) -> Mapping[str, Tensor] | None:
        """What to save in theta's place when training is over; None for theta itself."""


@runtime_checkable
class StartMethod(Protocol):
    """A method that is done before any training (UCE, RECE, a checkpoint unlearned elsewhere).

    It gives theta_0 of the paper's Algorithm 1, line 2; an arm with a `meta` part then trains its adapter on top.
    A class that has a `check(model)` too is asked before any work whether it fits the base (UserError if not).
    """

    def start(self, model: LoadedModel, prompts: list[Prompt]) -> LowRank | LoadedModel:
        """What training starts from; `model` is the base and stays as it is.

        Args:
            model: the base.
            prompts: those of `data.forget`, expanded.

        Returns:
            An exact low-rank edit of the base's UNet, or a whole model of the base's architecture.

        Raises:
            UserError: there is nothing to start from; one sentence.
        """


Method = GradientMethod | StartMethod
Factory = TypeVar("Factory", bound=Callable[[Any], Method])
_METHODS: dict[str, tuple[type[BaseModel], Callable[[Any], Method]]] = {}


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


def trains(method: str, meta: object) -> bool:
    """Whether an arm with this method and `meta` part has anything to train: a start method alone has not."""
    _load()
    return meta is not None or method not in _METHODS or not hasattr(_METHODS[method][1], "start")


def new_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with its options; RecipeError for an unknown name or option."""
    if name not in (names := method_names()):
        raise RecipeError(f"There is no method '{name}'; choose one of {', '.join(names)}.")
    kind, factory = _METHODS[name]
    try:
        return factory(kind.model_validate(dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["method", *map(str, first["loc"])])
        wrong = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"'{place}': {wrong}; method {name} takes {', '.join(kind.model_fields)}.") from None
