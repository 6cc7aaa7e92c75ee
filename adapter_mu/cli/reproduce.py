"""Make the paper's tables and figures on a world, beside the paper's own numbers; stopped work continues."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_overrides

TARGETS = ("table1", "table2", "table4", "table5", "rules", "figure6", "figure7")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to reproduce, on which world's recipes, and where the runs lie."""
    parser.add_argument("target", choices=TARGETS, help="a table or figure of the paper; rules: its Appendix F")
    parser.add_argument("--world", default="shapes", help="a folder of shipped recipes (default: shapes)")
    parser.add_argument("--out", type=Path, help="the folder of the runs (default: runs/reproduce-<world>)")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table, or where the figure lies."""
    from adapter_mu.reproduce.targets import reproduce

    folder = args.out or Path("runs") / f"reproduce-{args.world}"
    print(reproduce(args.target, args.world, args.overrides, folder))
