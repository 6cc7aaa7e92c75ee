"""Do everything a recipe names: train, merge, attack, score, report; stopped runs continue."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe and the run's folder."""
    add_recipe(parser)
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/<recipe name>)")


def run(args: argparse.Namespace) -> None:
    """Run every stage, then print the table and where the results lie."""
    from adapter_mu.recipe import load_recipe
    from adapter_mu.run import everything

    recipe = load_recipe(args.recipe, args.overrides)
    print(everything(recipe, args.out or Path("runs") / recipe.name))
