"""Write an adapter for other tools: a LoRA for diffusers, ComfyUI, A1111 or kohya, a dense delta for ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_adapter_base, add_adapter_form, add_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adapter, base, output."""
    parser.add_argument("adapter", type=Path, help="an adapter.safetensors")
    add_adapter_base(parser)
    add_adapter_form(parser)
    add_dtype(parser, "fp32", "of the factors (default: fp32)")


def run(args: argparse.Namespace) -> None:
    """Warn that it is not merged, print the file."""
    from adapter_mu.ship import export_adapter

    print(export_adapter(args.adapter, args.base, args.out, args.format, config=args.config, dtype=args.dtype))
