"""The registry of methods and what the two kinds of them can do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.models import LoadedModel
from adapter_mu.params import Adapter, LowRank
from adapter_mu.registry import Registry


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
METHODS: Registry[Method] = Registry("method", "method", "adapter_mu.methods")
register = METHODS.register
method_names = METHODS.names


def draws(method: Method | None) -> bool:
    """Whether a method encodes prompts and draws while it trains: one that remembers, unless its `teacher` is None."""
    return isinstance(method, RememberingMethod) and getattr(method, "teacher", method) is not None


def trains(method: str, meta: object) -> bool:
    """Whether an arm with this method and `meta` part has anything to train: a start method alone has not."""
    return meta is not None or not hasattr(METHODS.factory(method), "start")


def new_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with its options; RecipeError for an unknown name or option."""
    return METHODS.make(name, options)
