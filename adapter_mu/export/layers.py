"""One edit of one weight, and how it is applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_mu.export.streaming import Lazy


@dataclass(frozen=True)
class Factors:
    """scale * up @ down, for a Linear or Conv2d weight; fp32."""

    down: Tensor
    """(rank, in, *kernel)"""
    up: Tensor
    """(out, rank, *ones)"""
    scale: float

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight; factors that do not compose have the shape (0,)."""
        fits = self.up.flatten(1).shape[1] == self.rank
        return (int(self.up.shape[0]), *self.down.shape[1:]) if fits else (0,)

    def delta(self, weight: float = 1.0) -> Tensor:
        """What an adapter of this weight adds. A 1x1 up-convolution makes the composed kernel a matrix product."""
        delta = (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.shape)
        scale = weight * self.scale  # applied last, as training does: the same bits as a run's own merge
        return delta if scale == 1 else delta.mul_(scale)


@dataclass(frozen=True)
class Delta:
    """A dense difference of any parameter, read when it is called for: all of them can be as large as the base."""

    source: Lazy

    @classmethod
    def of(cls, tensor: Tensor) -> Delta:
        """Of a tensor in memory."""
        return cls(Lazy(tensor.dtype, tuple(tensor.shape), lambda: tensor))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return self.source.shape

    def delta(self, weight: float = 1.0) -> Tensor:
        """What an adapter of this weight adds, fp32."""
        tensor = self.source.make().to(torch.float32)
        return tensor if weight == 1 else weight * tensor


Edit = Factors | Delta
