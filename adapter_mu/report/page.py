"""One self-contained report.html: styles and pictures inside, no scripts, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adapter_mu import __version__
from adapter_mu.errors import UserError
from adapter_mu.report.bars import sentences, verdicts
from adapter_mu.report.pictures import data_uri, galleries
from adapter_mu.report.plots import THEMES, Theme, load_training, relearning_plot, training_plot
from adapter_mu.report.rows import Results, arms, load_results
from adapter_mu.report.table import headline_table, scales

TEMPLATE = "template.html.j2"


def build_report(run: Path) -> Path:
    """Write `run`/report.html from the run's files and return its path.

    Needs results.json; recipe.yaml, environment.json, pictures and training logs are shown where they exist.

    Raises:
        UserError: results.json or environment.json is missing or cannot be read.
    """
    results = load_results(run)
    page = _environment().get_template(TEMPLATE).render(_content(run, results))
    path = run / "report.html"
    staged = path.with_name(".report.html.part")
    staged.write_text(page, encoding="utf-8")
    staged.replace(path)
    return path


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _content(run: Path, results: Results) -> dict[str, Any]:
    table = headline_table(results.rows)
    logs = load_training(run, arms(results.rows))
    counts = sorted({row.images for row in results.rows})
    return {
        "results": results,
        "table": table,
        "scales": scales(table.guidances),
        "images": str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "sentences": sentences(table, results.concept),
        "verdicts": verdicts(table),
        "curves": _themed(lambda theme: relearning_plot(results.rows, results.concept, theme)),
        "training": _themed(lambda theme: training_plot(logs, theme)),
        "galleries": galleries(run, results.rows),
        "recipe": _text(run / "recipe.yaml"),
        "environment": _flat(_facts(run / "environment.json")),
        "version": __version__,
    }


def _themed(plot: Callable[[Theme], bytes | None]) -> dict[str, str]:
    """The plot as a data URI for each theme; empty when there is nothing to plot."""
    drawn = {name: plot(theme) for name, theme in THEMES.items()}
    return {name: data_uri(png) for name, png in drawn.items() if png is not None}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _facts(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the recipe again.") from None
    return content if isinstance(content, dict) else {"environment": content}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level, keys joined by dots."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
