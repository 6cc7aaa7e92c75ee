"""Copy a shipped recipe to a file of your own."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe, and where to."""
    parser.add_argument("recipe", help="a shipped recipe's name (adapter-mu ls)")
    parser.add_argument("to", type=Path, help="the file to write; it must not exist")


def run(args: argparse.Namespace) -> None:
    """Copy with comments; an existing file is never overwritten."""
    from adapter_mu.errors import RecipeError
    from adapter_mu.recipe import recipe_path

    source = recipe_path(args.recipe)
    if args.to.exists():
        raise RecipeError(f"{args.to} exists already; choose another file.")
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    print(args.to)
