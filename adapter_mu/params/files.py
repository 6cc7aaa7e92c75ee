"""Safetensors files with metadata: written whole or not at all, read with clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapter_mu.errors import ModelError

_PICKLE_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_PICKLE_STARTS = (b"PK", b"\x80")  # a torch zip archive, a bare pickle
PAYLOAD_HASH = "payload_sha256"
"""Metadata key: the SHA-256, hexadecimal, of everything after the header; a flipped bit would load without a word."""
_BLOCK = 1 << 24


def payload_hash(path: Path) -> str:
    """SHA-256 of everything after a safetensors file's header, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_payload(path: Path, metadata: Mapping[str, str]) -> None:
    """ModelError when `metadata` says what the payload hashes to and it does not; without a word it passes."""
    expected = metadata.get(PAYLOAD_HASH)
    if expected is not None and expected != payload_hash(path):
        raise ModelError(
            f"{path} is damaged: its tensors do not have the hash they were written with; save or download it again"
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write beside `path` and rename, so that a crash leaves the old file or the new one.

    The same tensors and metadata always make the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        words = {**metadata, PAYLOAD_HASH: "0" * 64}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, staged, words)
        _seal(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _seal(path: Path) -> None:
    """Rewrite the header in place: the payload's hash, and metadata sorted, because safetensors writes any order."""
    digest = payload_hash(path)
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted({**header["__metadata__"], PAYLOAD_HASH: digest}.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(text.ljust(length))  # the format pads its header with spaces


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors on the CPU, and the metadata; ModelError if it is missing, a pickle, damaged or no safetensors."""
    with _opened(path) as stored:
        tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, dict(stored.metadata() or {})
    check_payload(path, metadata)
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone; ModelError as for `read_tensors`."""
    with _opened(path) as stored:
        return dict(stored.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ModelError(f"there is no adapter file {path}")
    pickle = f"{path} is a pickle, which can run code when opened: convert it to safetensors first"
    if path.suffix in _PICKLE_SUFFIXES:
        raise ModelError(pickle)
    try:
        with safe_open(path, "pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        # Only now: a sound file may begin with these bytes too, they are its header's length.
        with path.open("rb") as stream:
            if stream.read(2).startswith(_PICKLE_STARTS):
                raise ModelError(pickle) from error
        raise ModelError(f"{path} is truncated or not safetensors ({error}): save or download it again") from error
