"""Rebuild the embedded shapes world from a seed, or only check the shipped one: see `--help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adapter_mu.build_shapes.build import build_all, check

SHIPPED = Path(__file__).parents[1] / "adapter_mu" / "shapes" / "checkpoints"


def main() -> int:
    """Exit code 0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the checkpoints go (default: the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unet-steps", type=int, default=6000)
    parser.add_argument("--images", type=int, default=200, help="pictures a shape for the check")
    parser.add_argument("--pictures", type=Path, help="a folder for picture grids")
    parser.add_argument("--check-only", action="store_true", help="train nothing, only measure")
    args = parser.parse_args()
    if not args.check_only:
        build_all(args.out, args.seed, args.unet_steps)
    return 0 if check(args.out, args.images, args.pictures) else 1


if __name__ == "__main__":
    sys.exit(main())
