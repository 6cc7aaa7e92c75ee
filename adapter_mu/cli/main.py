"""`adapter-mu`: find the verb, run it, turn mistakes into one sentence and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from adapter_mu import __version__
from adapter_mu.cli import (
    attack,
    cp,
    data,
    evaluate,
    export,
    extract,
    ls,
    merge,
    plan,
    push,
    report,
    reproduce,
    run,
    sample,
    validate,
    verify,
)
from adapter_mu.errors import UserError

VERBS = (
    ls,
    cp,
    data,
    validate,
    plan,
    run,
    sample,
    attack,
    evaluate,
    merge,
    verify,
    export,
    extract,
    push,
    report,
    reproduce,
)
MISTAKE, INTERRUPTED = 2, 130


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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The verb's arguments; overrides may stand anywhere (argparse alone refuses them after an option)."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 2 for a mistake of the user's, 130 when stopped by Ctrl-C."""
    args = parse(arguments)
    for library in ("TRANSFORMERS", "DIFFUSERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader such as `head` has seen enough; nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        return _stop(str(error), MISTAKE)
    except OSError as error:
        if error.filename is None:
            raise
        return _stop(f"{error.filename}: {error.strerror}; choose another path or make room.", MISTAKE)
    except KeyboardInterrupt:
        return _stop("stopped; the same command continues from what is saved.", INTERRUPTED)
    return 0


def _stop(sentence: str, code: int) -> int:
    """Say why on a line of its own, below whatever a progress bar left."""
    gap = "\n" if sys.stderr.isatty() else ""
    print(f"{gap}adapter-mu: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
