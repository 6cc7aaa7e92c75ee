"""Figures as PNG files, each written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

DOTS_PER_INCH = 160


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure through a staged file in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    figure.savefig(staged, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    staged.replace(path)
