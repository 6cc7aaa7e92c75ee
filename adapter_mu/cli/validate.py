"""Check a recipe completely without training: keys, prompts, model, subset, method, detector."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe."""
    add_recipe(parser)


def run(args: argparse.Namespace) -> None:
    """Print what each arm would train."""
    from adapter_mu.recipe import load_recipe
    from adapter_mu.stages import validate

    for arm, trains in validate(load_recipe(args.recipe, args.overrides)).items():
        print(f"{arm}: {trains}")
