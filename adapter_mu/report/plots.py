"""Relearning curves and training terms as PNG, once for light pages and once for dark ones."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.rows import BASE, BEFORE, META, UNLEARNED, arms, attacks, lowest_benign, select, worst

# Okabe and Ito's colours, told apart by most colour-blind readers; fixed for the arms every run has.
FIXED = {BASE: "#8a8f98", UNLEARNED: "#d55e00", META: "#0a84c6"}
OTHERS = ("#009e73", "#cc79a7", "#b8860b", "#7f5fc7")
DOTS_PER_INCH = 160


@dataclass(frozen=True)
class Theme:
    """Colours of a page the plot stands on."""

    text: str
    grid: str


THEMES = {"light": Theme("#333a44", "#dfe3e8"), "dark": Theme("#c9d1d9", "#39414b")}


def relearning_plot(rows: Sequence[Row], concept: str, theme: Theme) -> bytes | None:
    """Concept scores over benign scores, one column an attack; None if nothing was attacked.

    The bold line is the worse guidance scale with its Wilson interval, thin lines are the single scales.
    """
    names = attacks(rows)
    if not names:
        return None
    with _style(theme):
        figure = Figure(figsize=(5.2 * len(names), 5.6), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 2))
        for column, attack in enumerate(names):
            above, below = axes[:, column]
            for arm, colour in colours(arms(rows)).items():
                curve = select(rows, arm, BEFORE) + select(rows, arm, attack)
                _draw(above, below, curve, arm, colour)
            above.set_title(f"{attack} finetuning", fontsize=11, fontweight="bold", loc="left")
            below.set_xlabel("attack steps")
        axes[0, 0].set_ylabel(f"images showing {concept}, %")
        axes[1, 0].set_ylabel("benign images right, %")
        _shared_legend(figure, axes[0, 0])
        return _png(figure)


def training_plot(logs: Mapping[str, list[dict[str, float]]], theme: Theme) -> bytes | None:
    """One small panel for every term the training logs name, a line an arm; None without logs."""
    terms = list(dict.fromkeys(key for log in logs.values() for line in log for key in line if key != "step"))
    if not terms:
        return None
    columns = min(4, len(terms))
    count = -(-len(terms) // columns)
    with _style(theme):
        figure = Figure(figsize=(10.4, 1.9 * count + 0.5), layout="constrained")
        axes = list(figure.subplots(count, columns, squeeze=False, sharex=True).flat)
        for axis, term in zip(axes, terms, strict=False):
            for arm, colour in colours(list(logs)).items():
                points = [(line["step"], line[term]) for line in logs[arm] if term in line]
                if points:
                    steps, values = zip(*points, strict=True)
                    axis.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
                    axis.plot(steps, smoothed(values), color=colour, lw=1.6, label=arm)
            axis.set_title(term.replace("_", " "), fontsize=9, loc="left")
        for axis in axes[len(terms) :]:
            axis.set_visible(False)
        _shared_legend(figure, *figure.axes)
        return _png(figure)


def load_training(run: Path, names: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """The training log of each arm that has one: a list of lines, each `step` and the terms by name."""
    logs = {}
    for arm in names:
        for path in (run / f"training_{arm}.jsonl", run / "arms" / arm / "train.jsonl"):
            if path.is_file():
                lines = [
                    json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")
                ]
                logs[arm] = [{k: float(v) for k, v in line.items() if isinstance(v, int | float)} for line in lines]
                break
    return logs


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm, the same in every plot of a run."""
    others = iter(OTHERS * len(names))
    return {name: FIXED[name] if name in FIXED else next(others) for name in names}


def smoothed(values: Sequence[float]) -> list[float]:
    """A trailing mean over a twelfth of the run, for the eye only."""
    window = max(1, len(values) // 12)
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i + 1 - window) : i + 1]]]


def _draw(above: Axes, below: Axes, curve: Sequence[Row], arm: str, colour: str) -> None:
    steps = sorted({row.step for row in curve})
    if not steps:
        return
    if len(steps) == 1:
        above.axhline(worst(curve).score, color=colour, ls="--", lw=1.3, label=f"{arm}, not attacked")
        below.axhline(lowest_benign(curve), color=colour, ls="--", lw=1.3)
        return
    for guidance in sorted({row.guidance for row in curve}):
        single = [row for row in curve if row.guidance == guidance]
        above.plot([row.step for row in single], [row.score for row in single], color=colour, lw=0.8, alpha=0.6)
        below.plot([row.step for row in single], [row.benign for row in single], color=colour, lw=0.8, alpha=0.6)
    cells = [[row for row in curve if row.step == step] for step in steps]
    bold = [worst(cell) for cell in cells]
    above.fill_between(steps, [row.low for row in bold], [row.high for row in bold], color=colour, alpha=0.18, lw=0)
    above.plot(steps, [row.score for row in bold], color=colour, lw=2.2, marker="o", ms=4, label=arm)
    below.plot(steps, [lowest_benign(cell) for cell in cells], color=colour, lw=2.2, marker="o", ms=4)
    for axis in (above, below):
        axis.set_ylim(-3, 103)
        axis.set_xticks(steps)


def _shared_legend(figure: Figure, *axes: Axes) -> None:
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=4, frameon=False)


def _style(theme: Theme) -> AbstractContextManager[None]:
    return rc_context(
        {
            "text.color": theme.text,
            "axes.labelcolor": theme.text,
            "axes.edgecolor": theme.grid,
            "xtick.color": theme.text,
            "ytick.color": theme.text,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": theme.grid,
            "grid.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,
            "font.size": 9,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
        }
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
