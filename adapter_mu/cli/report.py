"""Make report.html of a run's folder and print its table."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("folder", type=Path, help="the folder of a run")


def run(args: argparse.Namespace) -> None:
    """Print the table and the report's path."""
    from adapter_mu.report.page import build_report
    from adapter_mu.run import table

    build_report(args.folder)
    print(table(args.folder))
