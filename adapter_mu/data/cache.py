"""Files named by what they were made from, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from adapter_mu.params.files import read_tensors, write_tensors


def content_key(**content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the content, plain data, as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(module: nn.Module) -> str:
    """The first 16 hex digits of a SHA-256 of every parameter's and buffer's name, shape, type and bytes."""
    return fingerprint_tensors(_sorted_state(module))


def fingerprint_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The `fingerprint` of a module with these tensors, given in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


SAMPLED = 4096  # values a tensor; an edit that leaves all of them as they were is no edit anybody makes


def quick_fingerprint(*modules: nn.Module) -> str:
    """Like `fingerprint` of all modules, of a few thousand evenly spaced values of each tensor: 40 times as fast."""

    def few(tensor: Tensor) -> Tensor:
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, len(flat) // SAMPLED)]

    parts = [(f"{i} {name} {tuple(t.shape)}", few(t)) for i, m in enumerate(modules) for name, t in _sorted_state(m)]
    return fingerprint_tensors(parts)


def pipeline_fingerprint(pipeline: Any) -> str:
    """What a diffusers pipeline's pictures depend on: its networks (`quick_fingerprint`), its scheduler, its class."""
    networks = [part for _, part in sorted(pipeline.components.items()) if isinstance(part, nn.Module)]
    settings = sorted((k, repr(v)) for k, v in pipeline.scheduler.config.items() if not k.startswith("_"))
    names = [type(pipeline).__name__, type(pipeline.scheduler).__name__]
    return content_key(networks=quick_fingerprint(*networks), scheduler=settings, names=names)


def _sorted_state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return sorted(module.state_dict().items())


def write_text(path: Path, text: str) -> None:
    """Write a text file through a staged copy in the same folder, renamed once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG through a staged copy in the same folder, renamed once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture.save(staged, "PNG")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors at `path`, made and stored there first when it does not exist."""
    if not path.is_file():
        write_tensors(path, make(), {})
    return read_tensors(path)[0]
