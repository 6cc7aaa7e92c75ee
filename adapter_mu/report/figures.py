"""The page's charts: worst cases, relearning curves, training terms, agreement of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.rows import BEFORE, is_base, lowest_benign, select, worst
from adapter_mu.report.summary import worst_curve
from adapter_mu.report.svg import Plane, axes, band, drawing, line, marker, nice_ticks, text
from adapter_mu.report.training import Log, Trend, series, smoothed
from adapter_mu.report.words import interval

WIDTH, LEFT, RIGHT = 360.0, 34.0, 12.0
NARROW = 272.0
POINTS = 240  # a chart this small cannot show more points of a line


def worst_figure(row: Row, number: int) -> Markup:
    """One arm's worst score on a scale from 0 to 100 with its interval."""
    plane = Plane(8, 0, 340, 20, (0, 100), (0, 1))
    low, high = plane.x(row.low), plane.x(row.high)
    parts = ['<line class="grid" x1="8" x2="348" y1="10" y2="10"/>']
    for value in (0, 50, 100):
        x = plane.x(value)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="7" y2="13"/>')
        parts.append(text(x, 30, f"{value}", "tick middle"))
    parts += [f'<rect class="band s{number}" x="{low:.1f}" y="4" width="{max(high - low, 1):.1f}" height="12" rx="2"/>']
    parts += [marker(plane.x(row.score), 10, number, size=4.8)]
    label = f"{row.score:.1f} percent, 95 % interval {interval(row.low, row.high)}, on a scale from 0 to 100"
    return drawing(WIDTH, 34, label, parts)


def relearning_figure(cells: Sequence[Row], attack: str, numbers: Mapping[str, int], concept: str) -> Markup:
    """Concept scores over benign ones along one attack: bold lines the worse scale with its interval, thin ones all."""
    shown = {arm: select(cells, arm, attack) for arm in numbers}
    steps = sorted({0} | {row.step for rows in shown.values() for row in rows})
    ends = (0.0, float(steps[-1] or 1))
    above = Plane(LEFT, 26, WIDTH - LEFT - RIGHT, 180, ends, (0, 100))
    below = Plane(LEFT, 244, WIDTH - LEFT - RIGHT, 62, ends, (0, 100))
    parts = [
        text(0, 12, f"{concept} found, %", "axis"),
        axes(above, steps, (0, 25, 50, 75, 100), below=False),
        text(0, 232, "benign pictures right, %", "axis"),
        axes(below, steps, (0, 50, 100)),
        text(WIDTH - RIGHT, 338, "attack steps", "axis end"),
    ]
    for arm, number in numbers.items():
        parts += _flat_curve(cells, arm, above, below, number) if not shown[arm] else []
        parts += _curve(cells, arm, attack, above, below, number) if shown[arm] else []
    return drawing(WIDTH, 344, _in_words(cells, attack, numbers), parts)


def _flat_curve(cells: Sequence[Row], arm: str, above: Plane, below: Plane, number: int) -> list[str]:
    """A model this attack was not made on, as it is before any: the base, as a line to compare with."""
    before = select(cells, arm, BEFORE)
    if not before or not is_base(arm):
        return []
    ends, score, benign = above.xs, worst(before).score, lowest_benign(before)
    return [
        line([(plane.x(x), plane.y(value)) for x in ends], number, "flat")
        for plane, value in ((above, score), (below, benign))
    ]


def _curve(cells: Sequence[Row], arm: str, attack: str, above: Plane, below: Plane, number: int) -> list[str]:
    rows = select(cells, arm, BEFORE) + select(cells, arm, attack)
    parts = []
    for guidance in sorted({row.guidance for row in rows}):
        own = [row for row in rows if row.guidance == guidance]
        parts.append(line([(above.x(row.step), above.y(row.score)) for row in own], number, "thin"))
    before = select(cells, arm, BEFORE)
    curve = ([worst(before)] if before else []) + worst_curve(cells, arm, attack)
    parts.append(band([(above.x(r.step), above.y(r.low), above.y(r.high)) for r in curve], number))
    parts.append(line([(above.x(r.step), above.y(r.score)) for r in curve], number))
    parts += [marker(above.x(r.step), above.y(r.score), number, _tip(r)) for r in curve]
    benign = [(r.step, lowest_benign([row for row in rows if row.step == r.step])) for r in curve]
    parts.append(line([(below.x(step), below.y(value)) for step, value in benign], number))
    tips = [f"{arm}, step {step}: {value:.1f} % of benign pictures right" for step, value in benign]
    parts += [marker(below.x(s), below.y(v), number, tip, 2.8) for (s, v), tip in zip(benign, tips, strict=True)]
    return parts


def _tip(row: Row) -> str:
    return f"{row.arm}, step {row.step}: {row.score:.1f} % ({interval(row.low, row.high)}), guidance {row.guidance:g}"


def _in_words(cells: Sequence[Row], attack: str, numbers: Mapping[str, int]) -> str:
    curves = {arm: worst_curve(cells, arm, attack) for arm in numbers}
    said = [
        f"{arm}: {', '.join(f'{row.score:.0f} at step {row.step}' for row in curve)}"
        for arm, curve in curves.items()
        if curve
    ]
    return f"Relearning curve of {attack}, percent. {'; '.join(said)}."


def training_figure(term: str, logs: Mapping[str, Log], numbers: Mapping[str, int]) -> Markup:
    """One term of the objective against the training step: each value thin, the running mean bold."""
    found = {arm: points for arm, log in logs.items() if (points := series(log, term))[0]}
    values = [value for _, ys in found.values() for value in ys]
    ticks = nice_ticks(min(values), max(values))
    last = max(xs[-1] for xs, _ in found.values())
    plane = Plane(42, 24, 218, 112, (0, last or 1), (ticks[0], ticks[-1]))
    parts = [
        text(0, 12, term.replace("_", " "), "axis"),
        axes(plane, [t for t in nice_ticks(0, last or 1) if t <= last], ticks),
    ]
    for arm, (xs, ys) in found.items():
        stride = max(1, len(xs) // POINTS)
        for kind, shown in (("thin", ys), ("bold", smoothed(ys))):
            drawn = list(zip(xs, shown, strict=True))[::stride]
            parts.append(line([(plane.x(x), plane.y(y)) for x, y in drawn], numbers.get(arm, 0), kind))
    return drawing(NARROW, 158, f"{term.replace('_', ' ')} against the training step, {', '.join(found)}", parts)


def conflict_figure(
    measure: str,
    found: Mapping[str, tuple[list[float], list[float]]],
    trends: Mapping[str, Trend],
    numbers: Mapping[str, int],
) -> Markup:
    """How the unlearning and the meta gradient agree at every step, with a least-squares line an arm."""
    values = [0.0, *(value for _, ys in found.values() for value in ys)]
    ticks = nice_ticks(min(values), max(values), 4)
    last = max(xs[-1] for xs, _ in found.values())
    plane = Plane(46, 26, 364, 170, (0, last or 1), (ticks[0], ticks[-1]))
    parts = [
        text(0, 12, measure, "axis"),
        axes(plane, [t for t in nice_ticks(0, last or 1, 5) if t <= last], ticks),
        f'<line class="zero" x1="46" x2="410" y1="{plane.y(0):.1f}" y2="{plane.y(0):.1f}"/>',
        text(410, 228, "training steps", "axis end"),
    ]
    for arm, (xs, ys) in found.items():
        stride = max(1, len(xs) // (2 * POINTS))
        points = list(zip(xs, ys, strict=True))[::stride]
        parts += [marker(plane.x(x), plane.y(y), numbers.get(arm, 0), size=1.5) for x, y in points]
        if arm in trends:
            ends = (trends[arm].start, trends[arm].end)
            parts.append(line([(plane.x(x), plane.y(y)) for x, y in ends], numbers.get(arm, 0)))
    slopes = [f"{arm}: slope {t.slope:.3g} a step" for arm, t in trends.items()]
    return drawing(420, 232, f"{measure} against the training step. {'; '.join(slopes)}.", parts)
