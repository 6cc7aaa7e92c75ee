"""What a computation that runs twice must find as it was: random states and autocast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Replay:
    """Random states and autocast settings of one moment, for the CPU and the devices of the tensors at hand."""

    cpu: Tensor
    cuda: dict[int, Tensor]
    autocast: dict[str, tuple[bool, torch.dtype]]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Replay:
        """As things are now."""
        devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
        kinds = {"cpu"} | ({"cuda"} if devices else set())
        return cls(
            torch.get_rng_state(),
            {device: torch.cuda.get_rng_state(device) for device in devices},
            {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted(kinds)},
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        """Things as they were; afterwards as before. Valid in any thread: a backward pass may run in its own."""
        before = torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in self.cuda}
        with ExitStack() as stack:
            stack.callback(_set_random, *before)
            _set_random(self.cpu, self.cuda)
            for kind, (enabled, dtype) in self.autocast.items():
                # No cache: it would keep casts of parameters that live for one block only.
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield


def _set_random(cpu: Tensor, cuda: dict[int, Tensor]) -> None:
    torch.set_rng_state(cpu)
    for device, state in cuda.items():
        torch.cuda.set_rng_state(state, device)
