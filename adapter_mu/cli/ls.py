"""List the shipped recipes."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> None:
    """Print every recipe's name and description."""
    from adapter_mu.recipe import load_recipe, recipe_folder, recipe_names

    names = recipe_names()
    for name in names:
        print(f"{name:28} {load_recipe(name).description}")
    if not names:
        print(f"no recipes in {recipe_folder()}")
