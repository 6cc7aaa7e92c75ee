"""Pairs (x, xdot): dual tensors, and the forward-mode level in which they live.

PyTorch has one forward-mode level for the whole process, levels do not nest, and backward passes of a GPU run in
threads of their own. So whoever needs the level holds a lock, and what a level is opened with travels with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from adapter_mu.errors import UserError

_LOCK = threading.RLock()


@dataclass(eq=False)
class Level:
    """One opening of the forward-mode level; `rules` is the function mode that holds inside it."""

    rules: TorchFunctionMode
    open: bool = True


# Per thread (and never inherited): a thread of the autograd engine starts without a level and opens its own.
_current: ContextVar[Level | None] = ContextVar("adapter_mu_pair_level", default=None)


def current_level() -> Level | None:
    """The level that this thread has open."""
    return _current.get()


@contextmanager
def pair_level(rules: TorchFunctionMode) -> Iterator[Level]:
    """Open the forward-mode level with `rules` in force; inside the same thread's open level, only the rules.

    It must be closed before a backward pass: under an open level saved tensors come back as pairs, and the second
    half would be counted twice.

    Raises:
        UserError: somebody else has a forward-mode level open.
    """
    outer = _current.get()
    with _LOCK, ExitStack() as stack:
        if outer is None:
            if forward_ad._current_level >= 0:
                raise UserError("pair_checkpoint cannot run inside another forward-mode derivative: close it first")
            stack.enter_context(forward_ad.dual_level())
        level = outer or Level(rules)
        token = _current.set(level)
        try:
            # Function.forward switches forward mode off, the autograd engine's threads start with their own defaults.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), rules:
                yield level
        finally:
            _current.reset(token)
            level.open = outer is not None


def split(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """(x, xdot); xdot is None for a constant. Neither half is a pair."""
    if _current.get() is None:
        return tensor, None
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    if tangent is None:
        return tensor, None
    return primal, torch.zeros_like(primal) if tangent._is_zerotensor() else tangent


def join(primal: Tensor, tangent: Tensor | None) -> Tensor:
    """The pair as one dual tensor."""
    if tangent is None:
        return primal
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def run_function(function: Any, *inputs: Any) -> Any:
    """`function.apply(*inputs)` for a `torch.autograd.Function`, whose `apply` has no types."""
    return function.apply(*inputs)
