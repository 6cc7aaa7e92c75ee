"""Attack a merged model with the attacks of a recipe and score it along the way."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, whose recipe's attacks and scores, and the folder for the results."""
    add_model(parser)
    parser.add_argument("--recipe", required=True, help="the recipe whose `attacks` and `evaluate` parts are used")
    parser.add_argument("--attack", action="append", help="only this attack of the recipe (may be repeated)")
    parser.add_argument("--name", default="model", help="what to call the model in tables")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from adapter_mu.recipe import load_recipe
    from adapter_mu.run import attack_model

    recipe = load_recipe(args.recipe, args.overrides)
    print(attack_model(args.model, args.config, recipe, args.attack, args.name, args.out))
