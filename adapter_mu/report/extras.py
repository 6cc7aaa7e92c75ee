"""What results.json may hold besides rows: picture quality and paired differences (prompt attacks: PromptSuccess)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Quality:
    """One quality figure of one model, with its interval where it has one and the convention it was taken by."""

    arm: str
    metric: str
    value: float
    attack: str = "none"
    step: int = 0
    low: float | None = None
    high: float | None = None
    images: int = 0
    convention: str = ""


@dataclass(frozen=True)
class Difference:
    """Score of `arm` minus that of `reference` over the same prompts and seeds, in points."""

    arm: str
    reference: str
    attack: str
    step: int
    guidance: float
    value: float
    low: float
    high: float
    images: int = 0


def items_from(kind: type[T], raw: Iterable[Mapping[str, Any]] | None) -> list[T]:
    """The items that JSON holds; unknown keys are passed over, missing ones take their defaults.

    Raises:
        KeyError: an item lacks a key without a default.
        TypeError, ValueError: a value is of another kind.
    """
    return [kind(**_values(kind, item)) for item in raw or ()]


def _values(kind: type[Any], item: Mapping[str, Any]) -> dict[str, Any]:
    required = {f.name for f in fields(kind) if f.default is MISSING}
    if missing := sorted(required - item.keys()):
        raise KeyError(missing[0])
    return {f.name: _typed(str(f.type), item[f.name]) for f in fields(kind) if f.name in item}


def _typed(kind: str, value: Any) -> Any:
    if value is None and kind.endswith("None"):
        return None
    return {"str": str, "int": int}.get(kind, float)(value)
