"""Validation errors in one sentence that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def sentence(error: ValidationError, where: str, whole: type[BaseModel]) -> str:
    """The first thing wrong with a `whole`, in one sentence."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if "[" not in str(part)]  # pydantic's marks, such as literal[...]
    place, value = ".".join(parts) or "recipe", first["input"]
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(parts[-1], _keys_of(whole, parts[:-1]), n=1)
        return f"{where}: unknown key '{place}'; " + (f"did you mean '{close[0]}'?" if close else "remove it.")
    if first["type"] == "missing":
        return f"{where}: '{place}' is missing; add it."
    wants_mapping = first["type"] in ("model_type", "dict_type")
    said = "it must be a mapping of keys to values" if wants_mapping else first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(value, Mapping | BaseModel) else f" (it is {value!r:.80})"
    return f"{where}: '{place}': {said}{found}."


def _keys_of(whole: type[BaseModel], place: Sequence[str]) -> list[str]:
    """What may stand in the part of a recipe at `place`."""
    parts = [whole]
    for key in place:
        deeper = [part.model_fields[key].annotation for part in parts if key in part.model_fields]
        parts = [kind for annotation in deeper for kind in _models_in(annotation)] or parts  # an attack's name: stay
    return [key for part in parts for key in part.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The parts of a recipe that a field's type speaks of, however deep in lists, mappings and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _models_in(inner)]
