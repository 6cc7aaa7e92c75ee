"""Weights of detectors: found here or in the local cache of the hub, never downloaded; named and hashed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from adapter_mu.errors import ModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BLOCK = 1 << 24


def named_thresholds(values: Sequence[float]) -> dict[str, float]:
    """Thresholds by name, smallest first: {"0.45": 0.45, ...}."""
    return {f"{value:g}": float(value) for value in sorted(values)}


def find_folder(weights: str, what: str) -> Path:
    """The folder of a local path, or of a hub id in the local cache.

    Raises:
        ModelError: it is neither; the sentence has the command that brings a hub id's files.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(weights):
        raise ModelError(f"{what}: there is no folder {path}; give a local folder or a hub id as `weights`.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(weights, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        raise ModelError(
            f"{what} is not on this machine; bring it with `hf download {weights}`, "
            "or give a local folder as `weights`."
        ) from None


def find_file(weights: Path | None, what: str) -> Path:
    """The .safetensors file; ModelError when none is named or it is not there."""
    if weights is None:
        raise ModelError(f"{what}: name a .safetensors file as `weights`; docs/evaluation.md says how to make it.")
    if not weights.is_file():
        raise ModelError(f"{what}: there is no file {weights}; docs/evaluation.md says how to make it.")
    return weights


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def weights_hash(folder: Path) -> str:
    """SHA-256 over the hashes of a folder's .safetensors files in the order of their names; of one, its own."""
    hashes = [file_hash(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
