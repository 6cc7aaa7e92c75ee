"""Merge an adapter into its base and save a diffusers folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adapter, base, output."""
    parser.add_argument("adapter", type=Path, help="an adapter.safetensors")
    parser.add_argument("--base", required=True, help="the model it was trained on")
    parser.add_argument("--config", help="a diffusers folder with the architecture of a single file")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the saved weights")


def run(args: argparse.Namespace) -> None:
    """Print the folder."""
    from adapter_mu.run import merge_adapter

    print(merge_adapter(args.adapter, args.base, args.config, args.out, args.dtype))
