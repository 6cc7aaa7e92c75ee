"""Safetensors files one tensor at a time: 7 GB pass through the memory of their largest tensor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from adapter_mu.errors import ModelError
from adapter_mu.models.files import refuse_pickle, tensor_names
from adapter_mu.params.files import PAYLOAD_HASH

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
PENDING = "0" * 64
"""In metadata: replaced by the payload's SHA-256, hexadecimal, once it is known."""


@dataclass(frozen=True)
class Lazy:
    """A tensor that is read or computed when it is called for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def then(self, dtype: torch.dtype, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Lazy:
        """The same tensor, changed when it is called for."""
        return Lazy(dtype, shape, lambda: change(self.make()))


class StoredFile:
    """A safetensors file whose tensors are read one by one into fresh memory, never mapped."""

    def __init__(self, path: Path) -> None:
        """Reads the header; ModelError for a pickle, a truncated file or a dtype that is not handled."""
        refuse_pickle(path)
        tensor_names(path)  # safetensors checks header, offsets and length
        self.path = path
        with path.open("rb") as stream:
            self._start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(self._start - 8))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._entries: dict[str, tuple[str, list[int], list[int]]] = {
            name: (entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in header.items()
        }
        strange = {dtype for dtype, _, _ in self._entries.values()} - _DTYPES.keys()
        if strange:
            raise ModelError(f"'{path}' holds {min(strange)} tensors, which are not handled: export fp16 or fp32.")

    def tensors(self) -> dict[str, Lazy]:
        """Every tensor by name, unread."""
        return {
            name: Lazy(_DTYPES[dtype], tuple(shape), lambda name=name: self.read(name))  # type: ignore[misc]
            for name, (dtype, shape, _) in self._entries.items()
        }

    def read(self, name: str) -> Tensor:
        """One tensor; ModelError when the file has become shorter since it was opened."""
        dtype, shape, (begin, end) = self._entries[name]
        buffer = torch.empty(end - begin, dtype=torch.uint8)
        view, done = buffer.numpy().data, 0
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self._start + begin)
            while done < len(view):
                count = stream.readinto(view[done:])
                if not count:
                    raise ModelError(f"'{self.path}' ends within {name!r}: it is truncated; fetch or export it again.")
                done += count
        return buffer.view(_DTYPES[dtype]).reshape(shape)


def payload_size(tensors: Mapping[str, Lazy]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.size for tensor in tensors.values())


def write_streamed(
    path: Path, tensors: Mapping[str, Lazy], metadata: Mapping[str, str], progress: Callable[[int], object]
) -> None:
    """Write a safetensors file tensor by tensor; its metadata say what its payload hashes to.

    Args:
        path: an ordinary file, overwritten: stage it.
        tensors: called for in the order of the file.
        metadata: of the file; `PENDING` in its values becomes the payload's hash.
        progress: told the bytes of every tensor that was written.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    # Widest dtypes first keeps every tensor aligned, as the safetensors library itself orders them.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        stream.write(_header(tensors, order, metadata, PENDING))
        for block in _blocks(tensors, order, progress):
            digest.update(block)
            stream.write(block)
        stream.seek(0)
        stream.write(_header(tensors, order, metadata, digest.hexdigest()))
        stream.flush()
        os.fsync(stream.fileno())


def _blocks(tensors: Mapping[str, Lazy], order: list[str], progress: Callable[[int], object]) -> Iterator[memoryview]:
    for name in order:
        made = tensors[name].make()
        assert made.dtype == tensors[name].dtype and tuple(made.shape) == tensors[name].shape, name
        yield made.contiguous().reshape(-1).view(torch.uint8).numpy().data
        progress(tensors[name].size)


def _header(tensors: Mapping[str, Lazy], order: list[str], metadata: Mapping[str, str], digest: str) -> bytes:
    """The file's beginning; equally long whatever the digest is."""
    words = {"format": "pt", **metadata, PAYLOAD_HASH: PENDING}
    header: dict[str, object] = {"__metadata__": {key: words[key].replace(PENDING, digest) for key in sorted(words)}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        entry = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": tensor.shape}
        header[name] = entry | {"data_offsets": [offset, offset := offset + tensor.size]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
