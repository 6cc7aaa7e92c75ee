"""Draw pictures from a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapter_mu.cli.arguments import add_model, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, prompts and sampler."""
    add_model(parser)
    parser.add_argument("--prompt", action="append", required=True, help="may be given several times")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder for the PNG files")
    parser.add_argument("--images", type=positive, default=1, help="pictures a prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=positive, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)


def run(args: argparse.Namespace) -> None:
    """Write one PNG a picture and print its path."""
    from adapter_mu.evaluate.pictures import save_picture
    from adapter_mu.run import draw

    prompts = args.prompt * args.images
    for i, picture in enumerate(draw(args.model, args.config, prompts, args.seed, args.steps, args.guidance)):
        path = args.out / f"{i:04d}.png"
        save_picture(picture, path)
        print(path)
