"""Validation errors in one sentence that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import get_args

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


def _keys_of(part: type[BaseModel], place: Sequence[str]) -> list[str]:
    """What may stand in the part of a recipe at `place`."""
    for key in place:
        if key in part.model_fields:  # else an attack's name, which leads no deeper
            kind = part.model_fields[key].annotation
            part = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
    return list(part.model_fields)
