"""A plan for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adapter_mu.errors import RecipeError
from adapter_mu.plan.advice import Knob
from adapter_mu.plan.planning import Plan

GIB = 2**30
CUDA = int(1.5 * GIB)  # what CUDA itself takes, 1 to 2 GiB


def as_table(found: Plan, card: int | None, knobs: Sequence[Knob] = ()) -> str:
    """Bytes by stage, time, whether the card fits, and what each of the knobs would save."""
    lines = [f"{name:<18}{size / GIB:8.2f} GiB" for name, size in found.always.items()]
    for name, peak in found.peaks.items():
        work = f"{found.forwards[name]:6.0f} forwards" if name in found.forwards else ""
        lines.append(f"{name:<18}{peak / GIB:8.2f} GiB, of these {found.transient[name] / GIB:.2f} for itself {work}")
    lines.append(f"{'peak':<18}{found.peak / GIB:8.2f} GiB   (and 1 to 2 GiB for CUDA itself)")
    if found.host:
        lines.append(f"{'on the CPU':<18}{found.host / GIB:8.2f} GiB")
    lines.append(f"{'one outer step':<18}{sum(found.forwards.values()):8.0f} UNet forwards of one row")
    if card is not None:
        lines.append(f"{card / GIB:g} GiB card: {'fits' if fits(found, card) else 'does not fit'}")
        lines += [_saves(found, knob, card) for knob in knobs]
    return "\n".join(lines)


def _saves(found: Plan, knob: Knob, card: int) -> str:
    saved = (found.peak - knob.found.peak) / GIB
    return f"  {knob.override:<36} saves {saved:6.2f} GiB{', fits' if fits(knob.found, card) else ''} ({knob.price})"


def fits(found: Plan, card: int) -> bool:
    """Whether the peak leaves room for CUDA itself."""
    return found.peak + CUDA <= card


def card_bytes(text: str) -> int:
    """Bytes of a size such as 24GB; RecipeError for anything else."""
    number = text.upper().removesuffix("B").removesuffix("G").removesuffix("GI")
    try:
        return int(float(number) * GIB)
    except ValueError:
        raise RecipeError(f"--card {text} is no size; write it like 24GB.") from None


def save(found: Plan, path: Path) -> None:
    """As JSON, in bytes."""
    facts = {"always": found.always, "transient": found.transient, "peak": found.peak, "host": found.host}
    path.write_text(json.dumps(facts | {"forwards": found.forwards}, indent=2), encoding="utf-8")
