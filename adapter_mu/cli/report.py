"""Make report.html of a run's folder and print its table."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_run_folder(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table and the report's path."""
    from adapter_mu.errors import UserError
    from adapter_mu.report import headline_table, load_rows, render_text
    from adapter_mu.report.page import build_report

    if not (args.folder / "results.json").is_file():
        raise UserError(f"{args.folder} has no results.json; give the folder of a finished run.")
    print(render_text(headline_table(load_rows(args.folder))))
    print(build_report(args.folder))
