"""Bytes of tensors that are alive at once: what a computation needs, on the CPU, a GPU or the meta device.

Tensors may count as the host's, which a card does not have to hold: those named so, what is computed from them alone,
and what lands there by `landing`. So one machine, or the meta device, shows what would happen on two.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Side = Literal["device", "host"]

# Not per thread: backward passes of a GPU run in threads of their own.
_active: list[LiveBytes] = []
_landing: ContextVar[Side | None] = ContextVar("adapter_mu_landing", default=None)


class LiveBytes(TorchDispatchMode):
    """While entered, follows every storage that an operation makes until nothing refers to it any more.

    Numbers read from meta tensors are 1, so that code which looks at its losses runs there too.

    Attributes:
        live: bytes alive now, of storages made inside; without the host's.
        peak: the most there ever were.
        host_peak: the same for the host's.
        peaks: by the name of the `stage` they were seen in.
        flops: multiplications and additions of matrix products, convolutions and attention, by stage.
    """

    def __init__(self, known: Iterable[Tensor] = (), host: Iterable[Tensor] = ()) -> None:
        """`known`: tensors that existed before and do not count; `host`: likewise, but the host's."""
        super().__init__()
        self.live = self.peak = self.host = self.host_peak = 0
        self.peaks: dict[str, int] = defaultdict(int)
        self.flops: dict[str, int] = defaultdict(int)
        self.stage = ""
        mine = [tensor.untyped_storage() for tensor in host]
        self._known = [tensor.untyped_storage() for tensor in known] + mine
        self._seen: dict[int, Any] = {id(storage): None for storage in self._known}
        self._hosts = {id(storage) for storage in mine}

    def __enter__(self) -> LiveBytes:
        """Start."""
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Stop."""
        super().__exit__(*error)
        _active.remove(self)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and count what it made."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1 if args[0].dtype == torch.bool or not args[0].dtype.is_floating_point else 1.0
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and not leaf._is_zerotensor()]
        if made:  # zero tensors own no memory
            host = self._on_host(args, kwargs)
            for leaf in made:
                self._follow(leaf.untyped_storage(), host)
        self.peak = max(self.peak, self.live)
        self.host_peak = max(self.host_peak, self.host)
        self.peaks[self.stage] = max(self.peaks[self.stage], self.live)
        packet = getattr(func, "_overloadpacket", None)
        if packet in FLOPS:
            self.flops[self.stage] += FLOPS[packet](*args, **(kwargs or {}), out_val=result)
        return result

    def is_host(self, tensor: Tensor) -> bool:
        """Whether the tensor counts as the host's."""
        return id(tensor.untyped_storage()) in self._hosts

    def _on_host(self, args: Any, kwargs: Any) -> bool:
        side = _landing.get()
        if side is not None:
            return side == "host"
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        return bool(self._hosts) and bool(given) and all(self.is_host(leaf) for leaf in given)

    def _follow(self, storage: torch.UntypedStorage, host: bool) -> None:
        key, size = id(storage), storage.nbytes()
        if not size or key in self._seen:
            return
        if host:
            self.host += size
            self._hosts.add(key)
        else:
            self.live += size
        self._seen[key] = weakref.ref(storage, lambda _: self._gone(key, size, host))

    def _gone(self, key: int, size: int, host: bool) -> None:
        if host:
            self.host -= size
            self._hosts.discard(key)
        else:
            self.live -= size
        del self._seen[key]


def _fused_attention_flops(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Two matrix products."""
    rows = query.numel() // query.shape[-1]
    return int(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _fused_attention_backward_flops(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Five: the scores once more, and four cotangents."""
    rows = query.numel() // query.shape[-1]
    return int(2 * rows * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1]))


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_attention_backward_flops,
}


def counts_as_host(tensor: Tensor) -> bool:
    """Whether somebody who counts takes the tensor for the host's."""
    return any(live.is_host(tensor) for live in _active)


@contextmanager
def landing(side: Side) -> Iterator[None]:
    """What is made inside lies on that side: for copies from one to the other."""
    token = _landing.set(side)
    try:
        yield
    finally:
        _landing.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Name what goes on inside for those who count; the innermost name holds."""
    before = [live.stage for live in _active]
    watching = list(_active)
    for live in watching:
        live.stage = name
        live.peaks[name] = max(live.peaks[name], live.live)
    try:
        yield
    finally:
        for live, name_before in zip(watching, before, strict=True):
            live.stage = name_before
