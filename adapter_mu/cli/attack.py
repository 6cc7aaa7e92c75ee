"""Attack a merged model with the attacks of a recipe and score it along the way."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_scoring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, whose recipe's attacks and scores, and the folder for the results."""
    add_scoring(parser, "`attacks` and `evaluate` parts are")
    parser.add_argument("--attack", action="append", help="only this attack of the recipe (may be repeated)")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from adapter_mu.recipe import load_recipe
    from adapter_mu.run import attack_model

    recipe = load_recipe(args.recipe, args.overrides)
    print(attack_model(args.model, args.config, recipe, args.attack, args.name, args.out))
