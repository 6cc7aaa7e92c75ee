"""Things that recipes name and third parties may add: each kind is registered by name with its options."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from adapter_mu.errors import RecipeError, UserError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[[Any], Any])


class Registry(Generic[T]):
    """Every `what` by name: the modules of `package`, then what installed packages announce as entry points.

    Args:
        what: the kind, in messages ("method").
        place: where a recipe names it ("method"), for messages about its options.
        package: whose modules register themselves when imported ("adapter_mu.methods"); also the entry points' group.
        group: the entry points' group where it is not the package's name.
    """

    def __init__(self, what: str, place: str, package: str, group: str | None = None) -> None:
        self.what, self.place, self.package, self.group = what, place, package, group or package
        self.known: dict[str, tuple[type[BaseModel], Callable[[Any], T]]] = {}

    def register(self, name: str, options: type[BaseModel]) -> Callable[[F], F]:
        """Class decorator: make it available to recipes as `name`, called with its `options`, checked by pydantic.

        Raises:
            UserError: another one has that name.
        """

        def add(factory: F) -> F:
            if name in self.known:
                raise UserError(f"Two {self.what}s are registered as '{name}'; rename or uninstall one.")
            self.known[name] = (options, factory)
            return factory

        return add

    def names(self) -> list[str]:
        """Every registered name."""
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in entry_points(group=self.group):
            entry.load()
        return sorted(self.known)

    def factory(self, name: str) -> Callable[[Any], T] | None:
        """What makes it from its options, None for an unknown name."""
        return self.known[name][1] if name in self.names() else None

    def make(self, name: str, options: Mapping[str, Any]) -> T:
        """The one called `name` with its options; RecipeError for an unknown name or a wrong option."""
        if name not in (names := self.names()):
            raise RecipeError(f"There is no {self.what} '{name}'; choose one of {', '.join(names)}.")
        kind, factory = self.known[name]
        try:
            return factory(kind.model_validate(dict(options)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join([self.place, *map(str, first["loc"])])
            wrong = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            takes = ", ".join(kind.model_fields) or "no options"
            raise RecipeError(f"'{place}': {wrong}; {self.what} {name} takes {takes}.") from None
