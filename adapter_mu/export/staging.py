"""Outputs appear complete or not at all: written beside their place under a hidden name, renamed once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    _refuse_existing(out)
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
        _refuse_existing(out)
        os.rename(part, out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else f"{error.strerror or error}"
        raise UserError(f"Writing {out} failed ({reason}); free some space or choose another output.") from error
    finally:
        _remove(part)


def _refuse_existing(out: Path) -> None:
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
    else:
        part.unlink(missing_ok=True)
