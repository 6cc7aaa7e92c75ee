"""Score a model as it is, at every guidance scale of a recipe."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_scoring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, whose recipe's scores, and the folder for the results."""
    add_scoring(parser, "`evaluate` part is")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from adapter_mu.recipe import load_recipe
    from adapter_mu.run import attack_model

    recipe = load_recipe(args.recipe, args.overrides)
    print(attack_model(args.model, args.config, recipe, {}, args.name, args.out))
