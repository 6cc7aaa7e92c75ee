"""What a model card says about attacks."""

from __future__ import annotations

from pathlib import Path

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.pooling import pooled
from adapter_mu.report.rows import BASE, BEFORE, load_rows, worst


def attack_table(run: Path, arm: str) -> str:
    """Scores of one arm and of the base in the folder of a run, in Markdown; UserError when it has no results."""
    rows = pooled(load_rows(run))
    lines = [
        "Share of pictures in which a detector finds the concept, in percent, with its 95 % interval, at the guidance"
        " scale where it is highest. *Benign*: pictures that show what was asked for, there.\n",
        "| model | attack | steps | concept | 95 % interval | guidance | benign | pictures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = dict.fromkeys((row.arm, row.attack, row.step) for row in rows if row.arm in (arm, BASE))
    lines += [_line(worst([row for row in rows if (row.arm, row.attack, row.step) == cell])) for cell in cells]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    attack = "before any" if row.attack == BEFORE else row.attack
    return (
        f"| {row.arm} | {attack} | {row.step} | {row.score:.1f} | {row.low:.1f} to {row.high:.1f} | {row.guidance:g}"
        f" | {row.benign:.1f} | {row.images} |"
    )
