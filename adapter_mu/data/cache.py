"""Files named by what they were made from, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.params.files import read_tensors, write_tensors


def content_key(**content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the content, plain data, as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(module: nn.Module) -> str:
    """The first 16 hex digits of a SHA-256 of every parameter's and buffer's name, shape, type and bytes."""
    return fingerprint_tensors(sorted(module.state_dict().items()))


def fingerprint_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The `fingerprint` of a module with these tensors, given in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a text file through a staged copy in the same folder, renamed once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors at `path`, made and stored there first when it does not exist."""
    if not path.is_file():
        write_tensors(path, make(), {})
    return read_tensors(path)[0]
