"""`adapter-mu`: find the verb, run it, turn UserError into one sentence and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from adapter_mu import __version__
from adapter_mu.cli import attack, cp, evaluate, ls, merge, report, run, sample, validate
from adapter_mu.errors import UserError

VERBS = (ls, cp, validate, run, sample, attack, evaluate, merge, report)
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(prog="adapter-mu", description="Meta-unlearning for SD 1.x and SDXL.")
    parser.add_argument("--version", action="version", version=f"adapter-mu {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        name = verb.__name__.rpartition(".")[2]
        summary = (verb.__doc__ or "").strip().splitlines()[0]
        own = verbs.add_parser(name, help=summary, description=summary)
        verb.add_arguments(own)
        own.set_defaults(run=verb.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    args = build_parser().parse_args(arguments)
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        args.run(args)
    except UserError as error:
        print(f"adapter-mu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nadapter-mu: stopped; the same command continues from the last saved state.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
