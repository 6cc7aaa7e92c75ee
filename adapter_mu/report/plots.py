"""The page's charts as PNG files for papers and slides, on white."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.rows import BASE, BEFORE, META, UNLEARNED, arms, attacks, is_base, lowest_benign, select, worst
from adapter_mu.report.training import Log, agreement, series, smoothed, terms, trend

# Okabe and Ito's colours, told apart by most colour-blind readers; fixed for the arms every run has.
FIXED = {BASE: "#7a8089", UNLEARNED: "#c04f00", META: "#0a6fb0"}
OTHERS = ("#007d5a", "#a84a86", "#8a6d00", "#6a4fb3")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))
SIGNS = ("o", "s", "^", "D", "P")
DOTS_PER_INCH = 160
BESIDE = 4  # attacks that one picture can still show side by side
TEXT, GRID = "#1f2630", "#dfe3e8"


def write_plots(folder: Path, rows: Sequence[Row], logs: Mapping[str, Log], concept: str) -> None:
    """relearning.png (up to four attacks), one for each attack, training.png, gradient_conflict.png; what has data.

    Args:
        folder: where they go; it is made if needed.
        rows: pooled rows, one a cell.
        logs: training logs by arm.
        concept: what the detector looked for.
    """
    names = attacks(rows)
    made = {"training.png": _training(logs), "gradient_conflict.png": _conflict(logs)}
    if len(names) <= BESIDE:
        made["relearning.png"] = _relearning(rows, names, concept)
    if len(names) > 1:
        made |= {_file(name): _relearning(rows, [name], concept) for name in names}
    for name, png in made.items():
        if png is not None:
            folder.mkdir(parents=True, exist_ok=True)
            staged = folder / f".{name}.part"
            staged.write_bytes(png)
            staged.replace(folder / name)


def _file(attack: str) -> str:
    return f"relearning_{re.sub('[^A-Za-z0-9_.-]', '_', attack)}.png"


def _relearning(rows: Sequence[Row], names: Sequence[str], concept: str) -> bytes | None:
    """Concept scores over benign scores, one column an attack.

    The bold line is the worse guidance scale with its Wilson interval, thin lines are the single scales.
    """
    if not names:
        return None
    with _style():
        figure = Figure(figsize=(0.8 + 4.2 * len(names), 5.4), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 1.4))
        for column, attack in enumerate(names):
            above, below = axes[:, column]
            shown = arms(rows)  # counted without the base, so that an arm has the same dashes in every plot
            for number, (arm, colour) in enumerate(colours(shown).items(), -sum(map(is_base, shown))):
                _draw(above, below, select(rows, arm, BEFORE) + select(rows, arm, attack), arm, colour, number)
            above.set_title(attack, fontsize=11, fontweight="bold", loc="left")
            below.set_xlabel("attack steps")
        axes[0, 0].set_ylabel(f"images showing {concept}, %")
        axes[1, 0].set_ylabel("benign right, %")
        _shared_legend(figure, *figure.axes)
        return _png(figure)


def _draw(above: Axes, below: Axes, rows: Sequence[Row], arm: str, colour: str, number: int) -> None:
    steps = sorted({row.step for row in rows})
    if len(steps) < 2:
        if steps and is_base(arm):
            above.axhline(worst(rows).score, color=colour, ls="-", lw=1.1, label=f"{arm}, not attacked")
            below.axhline(lowest_benign(rows), color=colour, ls="-", lw=1.1)
        return
    for guidance in sorted({row.guidance for row in rows}):
        single = [row for row in rows if row.guidance == guidance]
        above.plot([row.step for row in single], [row.score for row in single], color=colour, lw=0.7, alpha=0.5)
    look: dict[str, Any] = {"color": colour, "lw": 2.0, "marker": SIGNS[number % len(SIGNS)], "ms": 5}
    look["ls"] = DASHES[number % len(DASHES)]
    cells = [[row for row in rows if row.step == step] for step in steps]
    bold = [worst(cell) for cell in cells]
    above.fill_between(steps, [row.low for row in bold], [row.high for row in bold], color=colour, alpha=0.15, lw=0)
    above.plot(steps, [row.score for row in bold], label=arm, **look)
    below.plot(steps, [lowest_benign(cell) for cell in cells], **look)
    for axis in (above, below):
        axis.set_ylim(-3, 103)
        axis.set_xticks(steps)


def _training(logs: Mapping[str, Log]) -> bytes | None:
    """One small panel for every term the training logs name, a line an arm."""
    names = terms(logs)
    if not names:
        return None
    columns = min(4, len(names))
    count = -(-len(names) // columns)
    with _style():
        figure = Figure(figsize=(10.4, 1.9 * count + 0.5), layout="constrained")
        axes = list(figure.subplots(count, columns, squeeze=False, sharex=True).flat)
        for axis, term in zip(axes, names, strict=False):
            for number, (arm, colour) in enumerate(colours(list(logs)).items()):
                steps, values = series(logs[arm], term)
                if steps:
                    axis.plot(steps, values, color=colour, lw=0.6, alpha=0.35)
                    axis.plot(steps, smoothed(values), color=colour, lw=1.6, ls=DASHES[number % 4], label=arm)
            axis.set_title(term.replace("_", " "), fontsize=9, loc="left")
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        _shared_legend(figure, *figure.axes)
        return _png(figure)


def _conflict(logs: Mapping[str, Log]) -> bytes | None:
    """How the unlearning and meta gradients agree, with a least-squares line an arm."""
    measure, found = agreement(logs)
    if not found:
        return None
    with _style():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axis = figure.subplots()
        axis.axhline(0, color=GRID, lw=1.2)
        for number, (arm, colour) in enumerate(colours(list(logs)).items()):
            steps, values = found.get(arm, ([], []))
            fitted = trend(steps, values)
            axis.plot(steps, values, SIGNS[number % len(SIGNS)], color=colour, ms=2.2, alpha=0.5)
            if fitted:
                label = f"{arm}: {fitted.slope:+.2g} a step"
                axis.plot(*zip(fitted.start, fitted.end, strict=True), color=colour, lw=2.0, label=label)
        axis.set_xlabel("training steps")
        axis.set_ylabel(f"{measure} of the gradients")
        _shared_legend(figure, axis)
        return _png(figure)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm, the same in every plot of a run."""
    others = iter(OTHERS * len(names))
    return {name: FIXED[name] if name in FIXED else next(others) for name in names}


def _shared_legend(figure: Figure, *axes: Axes) -> None:
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=3, frameon=False)


def _style() -> AbstractContextManager[None]:
    return rc_context(
        {
            "text.color": TEXT,
            "axes.labelcolor": TEXT,
            "axes.edgecolor": GRID,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,
            "text.parse_math": False,  # names are names, whatever they hold
            "font.size": 9,
        }
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
