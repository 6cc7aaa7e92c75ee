"""Random numbers that depend only on a seed, a step and the purpose they serve."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator seeded by a hash of (seed, purpose), so that a resumed or reordered run draws the same."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
