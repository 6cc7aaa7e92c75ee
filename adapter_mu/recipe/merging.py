"""Plain data laid over plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key; whatever is not a mapping on both sides is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def changed(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with changes merged in; a method of another name does not inherit the old one's options."""
    old, new = below.get("method"), above.get("method")
    if isinstance(old, Mapping) and isinstance(new, Mapping) and new.get("name", old.get("name")) != old.get("name"):
        below = {**below, "method": {}}
    return merged(below, above)
