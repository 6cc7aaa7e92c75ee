"""Merge an adapter into its base and save a diffusers folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adapter, base, output."""
    parser.add_argument("adapter", type=Path, help="an adapter.safetensors")
    parser.add_argument("--base", required=True, help="the model it was trained on")
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the saved weights")
    parser.add_argument("--force", action="store_true", help="merge although the base has other weights")


def run(args: argparse.Namespace) -> None:
    """Print the folder."""
    from adapter_mu.run import merge_adapter

    print(merge_adapter(args.adapter, args.base, args.config, args.out, args.dtype, force=args.force))
