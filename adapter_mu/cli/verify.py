"""Open a merged model as others would and compare its noise predictions with a run's base and adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, run, arm."""
    add_model(parser)
    parser.add_argument("--against", type=Path, required=True, help="the folder of the run that it came from")
    parser.add_argument("--arm", help="which arm of the run")


def run(args: argparse.Namespace) -> None:
    """Print the comparison; a model that differs is an error."""
    from adapter_mu.ship import verify_model

    print(verify_model(args.model, args.against, args.arm, args.config))
