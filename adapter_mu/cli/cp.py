"""Copy a shipped recipe to a file of your own."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe, and where to."""
    parser.add_argument("recipe", help="a shipped recipe's name (adapter-mu ls)")
    parser.add_argument("to", help="the file to write, which must not exist, or a folder")


def run(args: argparse.Namespace) -> None:
    """Copy with comments; an existing file is never overwritten."""
    from adapter_mu.errors import RecipeError
    from adapter_mu.recipe import recipe_path

    source = recipe_path(args.recipe)
    to = Path(args.to)
    if to.is_dir() or args.to.endswith("/"):
        to /= source.name
    if to.exists():
        raise RecipeError(f"{to} exists already; choose another file.")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    print(to)
