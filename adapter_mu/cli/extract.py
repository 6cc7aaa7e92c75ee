"""Extract a LoRA from the difference of two checkpoints, for models that were erased elsewhere."""

from __future__ import annotations

import argparse

from adapter_mu.cli.arguments import add_adapter_base, add_adapter_form, add_dtype, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tuned model, base, rank, output."""
    parser.add_argument("tuned", help="the edited model: a diffusers folder, a .safetensors file or a hub id")
    add_adapter_base(parser)
    parser.add_argument("--rank", type=positive, required=True, help="largest rank of a layer's factors")
    add_adapter_form(parser)
    add_dtype(parser, "fp32", "of the factors (default: fp32)")


def run(args: argparse.Namespace) -> None:
    """Print the file and how much of the difference it keeps."""
    from adapter_mu.ship import extract_adapter

    print(
        extract_adapter(args.tuned, args.base, args.out, args.rank, args.format, config=args.config, dtype=args.dtype)
    )
