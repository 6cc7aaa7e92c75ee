"""Upload a merged or exported model with its card to the Hugging Face hub, private unless told otherwise."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, where to, for whom."""
    parser.add_argument("path", type=Path, help="a merged folder, or a file that merge or export wrote")
    parser.add_argument("--repo", required=True, help="owner/name on the hub")
    parser.add_argument("--public", action="store_true", help="let everybody see it")


def run(args: argparse.Namespace) -> None:
    """Print the address."""
    from adapter_mu.export.push import push

    print(f"uploading {args.path}", file=sys.stderr)
    print(push(args.path, args.repo, public=args.public))
