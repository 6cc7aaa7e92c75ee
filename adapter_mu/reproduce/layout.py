"""Tables in the paper's layout as text, Markdown and CSV, each cell beside the paper's."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapter_mu.data.cache import write_text

MISSING = "-"


@dataclass(frozen=True)
class Cell:
    """One measured number, its interval and the paper's number; None for what there is not."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    paper: float | None = None
    digits: int = 1

    def lines(self) -> tuple[str, str, str]:
        """Value, interval and the paper's number."""
        interval = "" if self.low is None or self.high is None else f"[{self.low:.0f}-{self.high:.0f}]"
        return _number(self.value, self.digits), interval, _number(self.paper, 2)


@dataclass(frozen=True)
class Sheet:
    """A table: `heads` name the columns after the first, `rows` map a label to its cells, `notes` stand below."""

    title: str
    heads: Sequence[str]
    rows: dict[str, list[Cell]]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a terminal: three lines a row (measured, interval, the paper's)."""
        rows = [["", *self.heads]]
        for label, cells in self.rows.items():
            measured, interval, paper = zip(*(cell.lines() for cell in cells), strict=True)
            rows.append([label, *measured])
            rows += [["  95 %", *interval]] if any(interval) else []
            rows += [["  paper", *paper]] if any(part != MISSING for part in paper) else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([self.title, "", *(line.rstrip() for line in lines), "", *self.notes])

    def markdown(self) -> str:
        """One line a row; a cell holds the number, its interval and, in italics, the paper's."""
        lines = [["", *self.heads], ["---"] * (len(self.heads) + 1)]
        for label, cells in self.rows.items():
            lines.append([label, *(_markdown(cell) for cell in cells)])
        table = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([f"# {self.title}", "", *table, "", *(f"- {note}" for note in self.notes), ""])

    def csv(self) -> str:
        """One line a cell."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["row", "column", "value", "low", "high", "paper"])
        for label, cells in self.rows.items():
            for head, cell in zip(self.heads, cells, strict=True):
                writer.writerow(
                    [label, head, *("" if v is None else v for v in (cell.value, cell.low, cell.high, cell.paper))]
                )
        return buffer.getvalue()

    def save(self, folder: Path, name: str) -> None:
        """`name`.md and `name`.csv in the folder."""
        write_text(folder / f"{name}.md", self.markdown())
        write_text(folder / f"{name}.csv", self.csv())


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _markdown(cell: Cell) -> str:
    value, interval, paper = cell.lines()
    return "<br>".join([value, *([interval] if interval else []), *([f"*{paper}*"] if paper != MISSING else [])])
