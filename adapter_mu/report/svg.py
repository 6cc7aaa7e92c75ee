"""Small charts as inline SVG: colours come from the page, so that they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

DASHES = ("", "7 3.5", "2 2.5", "9 3 2 3", "4 2 1 2 1 2")
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
LABEL_GAP = 30  # least distance of two labels along x


@dataclass(frozen=True)
class Plane:
    """A rectangle of the drawing, its left, top, width and height, and the data ranges it shows."""

    left: float
    top: float
    width: float
    height: float
    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        """Where a value lies along x."""
        return self.left + _share(value, self.xs) * self.width

    def y(self, value: float) -> float:
        """Where a value lies along y, upwards."""
        return self.top + (1 - _share(value, self.ys)) * self.height


def _share(value: float, ends: tuple[float, float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> Markup:
    """An svg element that reads itself to those who do not see it."""
    body = "".join(parts)
    # The parts are made by this module, which escapes every text it is given.
    return Markup(f'<svg viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escape(label)}">{body}</svg>')


def axes(plane: Plane, xticks: Sequence[float], yticks: Sequence[float], *, below: bool = True) -> str:
    """Grid lines and their labels; without `below`, none along x."""
    parts = []
    for value in yticks:
        y = plane.y(value)
        parts.append(
            f'<line class="grid" x1="{_n(plane.left)}" x2="{_n(plane.left + plane.width)}" y1="{_n(y)}" y2="{_n(y)}"/>'
        )
        parts.append(text(plane.left - 5, y + 3.5, f"{value:g}", "tick end"))
    taken = -math.inf
    for value in xticks if below else ():
        x = plane.x(value)
        bottom = plane.top + plane.height
        parts.append(f'<line class="mark" x1="{_n(x)}" x2="{_n(x)}" y1="{_n(bottom)}" y2="{_n(bottom + 4)}"/>')
        if x - taken >= LABEL_GAP or math.isinf(taken):
            parts.append(text(x, bottom + 15, f"{value:g}", "tick middle"))
            taken = x
    return "".join(parts)


def text(x: float, y: float, words: str, kind: str) -> str:
    """Words at a place."""
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}">{escape(words)}</text>'


def band(points: Sequence[tuple[float, float, float]], series: int) -> str:
    """The area between low and high at every x."""
    there = [f"{_n(x)},{_n(low)}" for x, low, _ in points]
    back = [f"{_n(x)},{_n(high)}" for x, _, high in reversed(points)]
    return f'<polygon class="band s{series}" points="{" ".join(there + back)}"/>'


def line(points: Sequence[tuple[float, float]], series: int, kind: str = "bold") -> str:
    """A line; a bold one has its series' dashes, so that no two need colour to be told apart."""
    dash = (
        f' stroke-dasharray="{DASHES[series % len(DASHES)]}"' if kind == "bold" and DASHES[series % len(DASHES)] else ""
    )
    joined = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return f'<polyline class="{kind} s{series}"{dash} points="{joined}"/>'


def marker(x: float, y: float, series: int, tip: str = "", size: float = 3.6) -> str:
    """A series' sign, with words for whoever points at it."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    shape = MARKERS[series % len(MARKERS)]
    if shape == "circle":
        return f'<circle class="dot s{series}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}">{title}</circle>'
    return f'<path class="dot s{series}" d="{_outline(shape, x, y, size)}">{title}</path>'


def _outline(shape: str, x: float, y: float, r: float) -> str:
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "cross": [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2)]
        + [(-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
    }[shape]
    return "M" + "L".join(f"{_n(x + r * dx)} {_n(y + r * dy)}" for dx, dy in corners) + "Z"


def swatch(series: int, kind: str = "bold", *, sign: bool = True) -> Markup:
    """A series' line for a legend, with its sign where the chart shows signs."""
    parts = [line([(1, 7), (35, 7)], series, kind), marker(18, 7, series) if sign else ""]
    return Markup(f'<svg viewBox="0 0 36 14" class="swatch" aria-hidden="true">{"".join(parts)}</svg>')


def nice_ticks(low: float, high: float, wanted: int = 3) -> list[float]:
    """Round values that cover low to high, at least two."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _n(value: float) -> str:
    """A number as short as a drawing needs."""
    return f"{value:.1f}".removesuffix(".0")
