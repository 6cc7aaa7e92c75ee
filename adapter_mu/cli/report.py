"""Make report.html of a run and print its table; of several runs, one page that compares them."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="RUN", help="the folder of a run; several are compared"
    )
    parser.add_argument("--out", type=Path, help="the comparison's file (default: comparison.html in the first folder)")


def run(args: argparse.Namespace) -> None:
    """Print the tables and the page's path."""
    from adapter_mu.report.page import build_comparison, build_report
    from adapter_mu.run import table

    if len(args.folders) == 1:
        if args.out:
            raise UserError("--out is for a comparison; a single run's report is written into its folder.")
        build_report(args.folders[0])
        print(table(args.folders[0]))
    else:
        page = build_comparison(args.folders, args.out)
        print("\n\n".join(_scores(folder) for folder in args.folders))
        print(f"\ncomparison: {page}")


def _scores(folder: Path) -> str:
    """A run's table under its name."""
    from adapter_mu.report import headline_table, load_results, render_text

    results = load_results(folder)
    return f"{folder}\n{render_text(headline_table(results.rows), results.concept)}"
