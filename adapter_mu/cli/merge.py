"""Merge adapters into their base: a diffusers folder or a single file, verified."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_adapter_base, add_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adapters, base, output."""
    parser.add_argument(
        "adapters",
        nargs="+",
        type=Path,
        metavar="adapter",
        help="an adapter, a LoRA of other tools, or the folder of a run's arm (its edit, then its adapter)",
    )
    add_adapter_base(parser)
    parser.add_argument("--variant", help="weight variant of the base, such as fp16")
    parser.add_argument("--revision", help="commit, tag or branch of a base on the hub")
    parser.add_argument("--out", type=Path, required=True, help="the folder or file to write; it must not exist")
    parser.add_argument(
        "--format",
        choices=("diffusers", "single-file"),
        default="diffusers",
        help="a diffusers folder, or one .safetensors file for ComfyUI, A1111 and kohya",
    )
    add_dtype(parser, None, "of the saved weights (default: as in the base)")
    parser.add_argument("--scale", action="append", type=float, help="weight of an adapter; once for each (default: 1)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare noise predictions afterwards")
    parser.add_argument("--force", action="store_true", help="merge although the base has other weights")


def run(args: argparse.Namespace) -> None:
    """Print where it lies, the worst rounding and the comparison."""
    from adapter_mu.ship import merge_adapters

    merged = merge_adapters(
        args.adapters,
        args.base,
        args.out,
        config=args.config,
        variant=args.variant,
        revision=args.revision,
        form=args.format,
        dtype=args.dtype,
        scales=args.scale,
        verify=not args.no_verify,
        force=args.force,
    )
    print(merged)
