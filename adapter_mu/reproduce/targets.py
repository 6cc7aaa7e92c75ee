"""What can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adapter_mu.reproduce.ablations import rules, table4, table5
from adapter_mu.reproduce.figure6 import figure6
from adapter_mu.reproduce.figure7 import figure7
from adapter_mu.reproduce.layout import Sheet
from adapter_mu.reproduce.runs import World
from adapter_mu.reproduce.table1 import table1
from adapter_mu.reproduce.table2 import table2

TABLES: dict[str, Callable[[World], Sheet]] = {
    "table1": table1,
    "table2": table2,
    "table4": table4,
    "table5": table5,
    "rules": rules,
}
FIGURES: dict[str, Callable[[World], str]] = {"figure6": figure6, "figure7": figure7}


def reproduce(target: str, world: str, overrides: Sequence[str], folder: Path) -> str:
    """Run what the target needs (or look it up) and write its files; returns the table, or the figure's path.

    Raises:
        UserError: the world has no recipe for a row, or an override does not fit one.
    """
    where = World(world, overrides, folder)
    if target in FIGURES:
        return FIGURES[target](where)
    sheet = TABLES[target](where)
    sheet.save(folder, target)
    return f"{sheet.text()}\n\n{folder / target}.md, {target}.csv"
