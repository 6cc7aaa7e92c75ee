"""Safetensors files with metadata: written whole or not at all, read with clear refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapter_mu.errors import ModelError

_PICKLE_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_PICKLE_STARTS = (b"PK", b"\x80")  # a torch zip archive, a bare pickle


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write beside `path` and rename, so that a crash leaves the old file or the new one.

    The same tensors and metadata always make the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, staged, dict(metadata))
        _sort_metadata(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _sort_metadata(path: Path) -> None:
    """Rewrite the header in place: safetensors writes metadata in random order, which would spoil every hash."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(text.ljust(length))  # the format pads its header with spaces


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, and the metadata; ModelError if it is missing, a pickle, truncated or no safetensors."""
    if not path.is_file():
        raise ModelError(f"there is no adapter file {path}")
    pickle = f"{path} is a pickle, which can run code when opened: convert it to safetensors first"
    if path.suffix in _PICKLE_SUFFIXES:
        raise ModelError(pickle)
    try:
        with safe_open(path, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, dict(stored.metadata() or {})
    except (SafetensorError, OSError) as error:
        # Only now: a sound file may begin with these bytes too, they are its header's length.
        with path.open("rb") as stream:
            if stream.read(2).startswith(_PICKLE_STARTS):
                raise ModelError(pickle) from error
        raise ModelError(f"{path} is truncated or not safetensors ({error}): save or download it again") from error
