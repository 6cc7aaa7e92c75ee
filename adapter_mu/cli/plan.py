"""Say how much memory and time a recipe needs, before it runs and without its weights."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, the card and the size."""
    add_recipe(parser)
    parser.add_argument(
        "--card", metavar="SIZE", help="a GPU's memory, for example 24GB: says whether it fits, else what would help"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures (default: the base's own)")


def run(args: argparse.Namespace) -> None:
    """Print every arm's plan."""
    from adapter_mu.plan import advice, as_table, card_bytes, fits, plan
    from adapter_mu.recipe import load_recipe
    from adapter_mu.stages import arms, say

    recipe = load_recipe(args.recipe, args.overrides)
    card = None if args.card is None else card_bytes(args.card)
    for name, arm in arms(recipe).items():
        found = plan(arm, size=args.size)
        short = card is not None and not fits(found, card)
        knobs = advice(arm, args.size, lambda knob: say(f"planning again with {knob}")) if short else []
        print(f"{name}\n{as_table(found, card, knobs)}\n")
