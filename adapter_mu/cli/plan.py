"""Say how much memory and time a recipe needs, before it runs and without its weights."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe and the card."""
    add_recipe(parser)
    parser.add_argument("--card", metavar="SIZE", help="a GPU's memory, for example 24GB: says whether it fits")


def run(args: argparse.Namespace) -> None:
    """Print every arm's plan."""
    from adapter_mu.methods import trains
    from adapter_mu.plan import as_table, card_bytes, plan
    from adapter_mu.recipe import load_recipe
    from adapter_mu.stages import arms

    recipe = load_recipe(args.recipe, args.overrides)
    card = None if args.card is None else card_bytes(args.card)
    for name, arm in arms(recipe).items():
        needs = as_table(plan(arm), card) if trains(arm.method.name, arm.meta) else "nothing to train"
        print(f"{name}\n{needs}\n")
