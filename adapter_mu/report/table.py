"""The headline table: one line an arm, every cell the worse of the guidance scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from adapter_mu.evaluate.statistics import Row, area_error, area_under_curve
from adapter_mu.report.pooling import pooled
from adapter_mu.report.rows import BEFORE, CLEAN, MALICIOUS, arms, attacks, lowest_benign, plain_twin, select, worst
from adapter_mu.report.words import scales

Column = tuple[str, int]
MISSING = "-"


@dataclass(frozen=True)
class Line:
    """One arm. Scores, benign and area in percent; `ratio` compares the area with its run's arm "unlearned"."""

    arm: str
    cells: dict[Column, list[Row]]
    benign: float | None
    area: float | None
    area_error: float | None
    ratio: float | None

    def worst(self, attack: str, step: int) -> Row | None:
        """The cell's row at the guidance scale where the score is highest, None where nothing was measured."""
        rows = self.cells.get((attack, step))
        return worst(rows) if rows else None

    def before(self) -> Row | None:
        """The worse score before any attack."""
        return self.worst(BEFORE, 0)

    def curve(self, attack: str) -> list[Row]:
        """The worse scores after each attack step measured."""
        return [worst(rows) for (name, _), rows in self.cells.items() if name == attack]


@dataclass(frozen=True)
class Table:
    """Lines in the order arms are shown; `columns` are (attack, step), before first."""

    columns: list[Column]
    lines: list[Line]
    guidances: list[float]

    def line(self, arm: str) -> Line | None:
        """The line of an arm, None if the run has no such arm."""
        return next((line for line in self.lines if line.arm == arm), None)

    def groups(self) -> list[tuple[str, list[int]]]:
        """The columns by attack, before first."""
        return [
            (attack, [step for name, step in self.columns if name == attack])
            for attack in dict.fromkeys(name for name, _ in self.columns)
        ]


def headline_table(rows: Sequence[Row]) -> Table:
    """The table of all arms.

    Scores are the higher of the guidance scales, benign (before attack) the lower: a defence is judged where it
    is weakest. The area is the mean of the `malicious` scores, for arms attacked at every step of the table.
    Several seeds of an attack count as one cell.
    """
    rows = pooled(rows)
    names = attacks(rows)
    columns = [(BEFORE, 0)] + [
        (name, step) for name in names for step in sorted({row.step for row in rows if row.attack == name})
    ]
    lines = [_line(rows, arm, columns) for arm in arms(rows)]
    found = {line.arm: line.area for line in lines}
    compared = [_compared(line, found.get(plain_twin(line.arm))) for line in lines]
    return Table(columns, compared, sorted({row.guidance for row in rows}))


def _line(rows: Sequence[Row], arm: str, columns: Sequence[Column]) -> Line:
    found = {column: select(rows, arm, *column) for column in columns}
    cells = {column: cell for column, cell in found.items() if cell}
    benign = lowest_benign(cells[BEFORE, 0]) if (BEFORE, 0) in cells else None
    names = malicious([attack for attack, _ in columns])
    wanted = [column for column in columns if column[0] in names]
    if not wanted or any(column not in cells for column in wanted):
        return Line(arm, cells, benign, None, None, None)
    curves = [[worst(cells[column]) for column in wanted if column[0] == name] for name in names]
    area = fmean(area_under_curve([row.step for row in curve], [row.score for row in curve]) for curve in curves)
    every = [row for curve in curves for row in curve]
    return Line(arm, cells, benign, area, area_error([row.score for row in every], [row.images for row in every]), None)


def malicious(names: Sequence[str]) -> list[str]:
    """The attacks whose scores make the area: the one of that name, else all but the clean ones (as hrm-m, hrm-s)."""
    found = [name for name in dict.fromkeys(names) if name != BEFORE and not name.startswith(CLEAN)]
    return [MALICIOUS] if MALICIOUS in found else found


def _compared(line: Line, reference: float | None) -> Line:
    ratio = line.area / reference if line.area is not None and reference else None
    return Line(line.arm, line.cells, line.benign, line.area, line.area_error, ratio)


def render_text(table: Table, concept: str = "the concept") -> str:
    """The table for a terminal, aligned, under a sentence that says what a cell is."""
    lines = table.lines
    blocks = [_block("", [], [[line.arm] for line in lines], str.ljust)]
    for attack, steps in table.groups():
        found = [[line.worst(attack, step) for step in steps] for line in lines]
        cells = [[_text(row.score if row else None) for row in part] for part in found]
        blocks.append(_block(*(("", ["before"]) if attack == BEFORE else (attack, [str(s) for s in steps])), cells))
    blocks.append(_block("benign", ["before"], [[_text(line.benign)] for line in lines]))
    blocks.append(_block("area", ["mean", "ratio"], [[_text(line.area), _text(line.ratio, 2)] for line in lines]))
    head = (
        f"Images in which the detector finds {concept}, in percent; the worse of guidance {scales(table.guidances)}.\n"
        "Benign: images that show what was asked for, at the lower scale. Area: mean of the malicious columns.\n"
    )
    return "\n".join([head, *(" | ".join(parts).rstrip() for parts in zip(*blocks, strict=True))])


def _text(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _block(
    title: str, heads: list[str], cells: list[list[str]], justify: Callable[[str, int], str] = str.rjust
) -> list[str]:
    """The columns under one title as lines of equal width: title, heads, cells."""
    rows = [heads or [""], *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    body = ["  ".join(justify(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    width = max(len(title), len(body[0]))
    return [title.ljust(width), *(justify(line, width) for line in body)]
