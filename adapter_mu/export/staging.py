"""Outputs appear complete or not at all: written beside their place under a hidden name, renamed once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from adapter_mu.errors import UserError


@contextmanager
def staged(out: Path, size: int = 0) -> Iterator[Path]:
    """A path beside `out` to write a file or folder at; it becomes `out` when the block ends without an error.

    Args:
        out: must not exist, so that no base or earlier result is overwritten.
        size: bytes that will be written.

    Raises:
        UserError: `out` exists, the disk has no `size` bytes left, or writing failed.
    """
    refuse_existing(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise UserError(
                f"{out} needs {size / 1e9:.2f} GB, but {out.parent.absolute()} has {free / 1e9:.2f} GB free;"
                " free some space or choose another output."
            )
        yield part
        refuse_existing(out)
        os.rename(part, out)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)  # safetensors tells in words only
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else str(getattr(error, "strerror", None) or error)
        raise UserError(f"Writing {out} failed ({reason}); free some space or choose another output.") from error
    finally:
        _remove(part)


def refuse_existing(out: Path) -> None:
    """UserError when `out` exists: nothing is ever overwritten."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another output or delete it.")


def _sweep(out: Path) -> None:
    """Remove what earlier attempts at `out` left when they were killed."""
    for part in out.parent.glob(f".{out.name}.*.part"):
        owner = part.name.split(".")[-2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            _remove(part)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    elif part.exists():  # what could not be made, below a file say, cannot be removed either
        part.unlink()
