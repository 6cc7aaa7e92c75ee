"""One edit of one weight, and how it is applied."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All numbers of the edit."""
        return (self.down, self.up)

    def delta(self) -> Tensor:
        """What is added to the weight. A 1x1 up-convolution makes the composed kernel a matrix product."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.shape)


@dataclass(frozen=True)
class Delta:
    """A dense difference of any parameter; fp32."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return tuple(self.tensor.shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All numbers of the edit."""
        return (self.tensor,)

    def delta(self) -> Tensor:
        """What is added to the parameter."""
        return self.tensor


Edit = Factors | Delta
