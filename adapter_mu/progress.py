"""Progress bars with a time estimate, and the one switch that silences them in a worker process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_silent = False


def silence() -> None:
    """No more bars in this process: its parent shows one for all."""
    global _silent
    _silent = True


def progress(items: Iterable[Item], label: str, **options: Any) -> tqdm[Item]:
    """`items` with a bar on stderr where that is a terminal; `options` are tqdm's."""
    # None lets tqdm decide by whether stderr is a terminal.
    return tqdm(items, desc=label, disable=True if _silent else None, **options)
