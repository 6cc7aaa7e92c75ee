"""One self-contained report.html: styles, pictures and a small script inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adapter_mu.data.cache import write_text
from adapter_mu.errors import UserError
from adapter_mu.report.bundle import Bundle, join, load_run
from adapter_mu.report.content import content
from adapter_mu.report.outputs import write_rows, write_summary
from adapter_mu.report.plots import write_plots
from adapter_mu.report.pooling import pooled
from adapter_mu.report.words import interval, place, signed

HERE = Path(__file__).parent
TEMPLATE = "page.html.j2"


def build_report(run: Path) -> Path:
    """Write `run`/report.html, report.json, results.csv and plots/ from the run's files; returns the page's path.

    Needs results.json; recipe.yaml, environment.json, pictures and training logs are shown where they exist.

    Raises:
        UserError: results.json or another file is missing or cannot be read.
    """
    bundle = load_run(run)
    results = bundle.results
    page = render(bundle)
    write_rows(run / "results.csv", results.rows)
    write_summary(run / "report.json", results, bundle.facts[0])
    write_plots(run / "plots", pooled(results.rows), bundle.logs, results.concept)
    write_text(run / "report.html", page)
    return run / "report.html"


def build_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page that shows several runs side by side, by default in the first one's folder.

    Raises:
        UserError: a run is named twice, has no results, or they cannot be read.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("The same run is named twice; name each run once.")
    bundles = [load_run(run) for run in runs]
    path = out or runs[0] / "comparison.html"
    write_text(path, render(join(bundles, labels(runs))))
    return path


def labels(runs: Sequence[Path]) -> list[str]:
    """The runs' folder names, with as many folders above as it takes to tell them apart."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def render(bundle: Bundle) -> str:
    """The page as text."""
    style, script = ((HERE / "static" / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            content(bundle),
            # Our own files, which hold no "</style>" or "</script>".
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
        )
    )


def policy(style: str, script: str) -> str:
    """What a browser may do with the page: show embedded pictures, use this one style and this one script."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"place": place, "interval": interval, "signed": signed}
    return environment
