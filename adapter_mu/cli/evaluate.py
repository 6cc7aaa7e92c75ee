"""Score a model as it is, at every guidance scale of a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, whose recipe's scores, and the folder for the results."""
    add_model(parser)
    parser.add_argument("--recipe", required=True, help="the recipe whose `evaluate` part is used")
    parser.add_argument("--name", default="model", help="what to call the model in tables")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from adapter_mu.recipe import load_recipe
    from adapter_mu.run import attack_model

    recipe = load_recipe(args.recipe, args.overrides)
    print(attack_model(args.model, args.config, recipe, [], args.name, args.out))
