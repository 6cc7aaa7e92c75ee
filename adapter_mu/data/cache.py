"""Files named by what they were made from, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.params.files import read_tensors, write_tensors


def content_key(**content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the content as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(module: nn.Module) -> str:
    """A hash of every parameter's name, shape, type and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a text file through a staged copy in the same folder, renamed once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors at `path`, made and stored there first when it does not exist."""
    if not path.is_file():
        write_tensors(path, make(), {})
    return read_tensors(path)[0]
