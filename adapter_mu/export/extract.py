"""A LoRA from the difference of two checkpoints, for models that were erased elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adapter_mu.errors import ModelError
from adapter_mu.export.architecture import empty_model
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.edits import Edits
from adapter_mu.export.layers import Edit, Factors
from adapter_mu.export.streaming import Lazy

_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
# Halko, Martinsson and Tropp (2011), algorithm 4.4: a few more columns and power iterations than the rank asks for.
_OVERSAMPLING, _ITERATIONS = 8, 4


@dataclass(frozen=True)
class Kept:
    """How much of one weight's difference the factors hold."""

    component: str
    name: str
    held: bool
    """Whether a LoRA can hold it at all: no bias, norm or embedding."""
    energy: float
    """Kept share of the squared difference."""
    squared: float
    """The squared difference."""


@dataclass(frozen=True)
class Extracted:
    """The LoRA and what it keeps."""

    edits: Edits
    kept: list[Kept]

    @property
    def energy(self) -> float:
        """Kept share of the squared difference of all weights together."""
        return sum(k.energy * k.squared for k in self.kept) / sum(k.squared for k in self.kept)

    def __str__(self) -> str:
        """For people."""
        held = [k for k in self.kept if k.held]
        left = [k for k in self.kept if not k.held]
        worst = min(held, key=lambda k: k.energy)
        text = f"{len(held)} layers, {self.energy:.2%} of the squared difference kept"
        text += f"; least in {worst.component} {worst.name}: {worst.energy:.2%}"
        if left:
            text += f"; {len(left)} biases, norms or embeddings differ too, which no LoRA holds"
        return text


def extract(tuned: Checkpoint, base: Checkpoint, rank: int, seed: int = 0) -> Extracted:
    """Factors of rank at most `rank` for every Linear and Conv2d layer that differs, by randomised SVD, one at a time.

    Raises:
        ModelError: the checkpoints are of different architectures, do not differ, or hold values that are not finite.
    """
    if tuned.kind != base.kind:
        raise ModelError(f"'{tuned.name}' is {tuned.kind}, but '{base.name}' is {base.kind}: give its own base.")
    components: dict[str, dict[str, Edit]] = {}
    kept: list[Kept] = []
    generator = torch.Generator().manual_seed(seed)
    for component, name, difference, fits in tqdm(list(_pairs(tuned, base)), desc="extract", leave=False, disable=None):
        delta = difference()
        squared = _energy(delta)
        if not squared < float("inf"):
            raise ModelError(f"{component} {name!r} holds values that are not finite: extract from fp32 checkpoints.")
        if squared == 0:
            continue
        if not fits:
            kept.append(Kept(component, name, False, 0.0, squared))
            continue
        factors = low_rank(delta, rank, generator)
        components.setdefault(component, {})[name] = factors
        energy = 1 - _energy(delta - factors.delta()) / squared
        kept.append(Kept(component, name, True, energy, squared))
    if not components:
        raise ModelError(f"'{tuned.name}' and '{base.name}' do not differ in any Linear or Conv2d layer.")
    return Extracted(Edits(tuned.name, "low_rank", components, {"base": base.name}), kept)


def _pairs(tuned: Checkpoint, base: Checkpoint) -> Iterator[tuple[str, str, Callable[[], Tensor], bool]]:
    """Component, parameter, its difference when called, and whether a pair of factors can hold it."""
    for component in (part for part in _COMPONENTS if part in base.components):
        layers = _layers(empty_model(base.folder, component))
        for name, stored in base.components[component].items():
            if not stored.dtype.is_floating_point:
                continue
            other = tuned.components[component].get(name)
            if other is None or other.shape != stored.shape:
                raise ModelError(
                    f"'{tuned.name}' has no {component} {name!r} of the shape in '{base.name}': wrong --base?"
                )
            yield component, name, _difference(other, stored), name in layers


def _difference(tuned: Lazy, base: Lazy) -> Callable[[], Tensor]:
    return lambda: tuned.make().float().sub_(base.make().float())


def _layers(model: nn.Module) -> set[str]:
    """Weights that LoRA loaders accept: in text encoders those of the transformer's layers only."""
    found = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    return {f"{name.removeprefix('text_model.')}.weight" for name in found if name != "text_projection"}


def _energy(delta: Tensor) -> float:
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2


def low_rank(delta: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """The best factors of at most `rank` (to the accuracy of the randomised SVD), the singular values shared evenly."""
    matrix = delta.flatten(1)
    rank = min(rank, *matrix.shape)
    left, values, right = _svd(matrix, rank, generator)
    root = values.sqrt()
    up, down = left * root, (right * root).T
    kernel = [1] * (delta.dim() - 2)
    return Factors(down.reshape(rank, *delta.shape[1:]).contiguous(), up.reshape(-1, rank, *kernel).contiguous(), 1.0)


def _svd(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], width, generator=generator)).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank].T
