"""Weights that lie elsewhere, or in another precision, than the layer they stand in for: brought when it runs.

A dense subset of a half-precision base is trained in float32, perhaps on the CPU. Cast all at once, as
`functional_call` alone would need, its copies live as long as the whole graph. Here each layer fetches its own when it
is called, so that inside a checkpointed block they go when the block is done; gradients take the same way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from adapter_mu.live import counts_as_host, landing


@dataclass(frozen=True)
class Place:
    """Where a layer expects a weight, and in which precision."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """Where `tensor` is."""
        return cls(tensor.device, tensor.dtype)


@contextmanager
def streamed(module: nn.Module) -> Iterator[None]:
    """Within, `call_with` leaves weights of the module's layers where they are, and the layers fetch them.

    Only parameters of layers without parts are meant. The module must not be moved or cast meanwhile.
    """
    layers = [part for part in module.modules() if not list(part.children()) and list(part.parameters())]
    for layer in layers:
        layer.adapter_mu_places = {n: Place.of(p) for n, p in layer.named_parameters()}  # type: ignore[assignment]
        layer.adapter_mu_forward = layer.__dict__.get("forward")  # type: ignore[assignment]
        layer.forward = MethodType(_forward, layer)  # a bound method, so that a deep copy is bound to the copy
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
            if layer.adapter_mu_forward is not None:
                layer.forward = layer.adapter_mu_forward  # type: ignore[assignment]
            del layer.adapter_mu_places, layer.adapter_mu_forward


def fetches(module: nn.Module) -> set[str]:
    """Names of the parameters that layers of the module fetch themselves."""
    return {
        f"{name}.{own}" if name else own
        for name, layer in module.named_modules()
        for own in getattr(layer, "adapter_mu_places", ())
    }


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    own = layer._parameters
    away = {name: own[name] for name, place in layer.adapter_mu_places.items() if not _is_at(own[name], place)}
    for name, tensor in away.items():
        own[name] = bring(tensor, layer.adapter_mu_places[name])
    try:
        usual = layer.adapter_mu_forward
        return type(layer).forward(layer, *args, **kwargs) if usual is None else usual(*args, **kwargs)
    finally:
        own.update(away)


def _is_at(tensor: Tensor, place: Place) -> bool:
    return tensor.device == place.device and tensor.dtype == place.dtype and not counts_as_host(tensor)


def bring(tensor: Tensor, place: Place) -> Tensor:
    """`tensor` at `place`, itself if it is there already; differentiable, also along a direction."""
    if _is_at(tensor, place):
        return tensor
    if tensor.device == place.device and not counts_as_host(tensor):
        return tensor.to(place.dtype)
    if forward_ad._current_level < 0:
        return _carry(tensor, place)
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    if tangent is None:
        return _carry(tensor, place)
    pair: Tensor = forward_ad.make_dual(_carry(primal, place), _carry(tangent, place))  # type: ignore[no-untyped-call]
    return pair


def _carry(tensor: Tensor, place: Place) -> Tensor:
    result: Tensor = _Carry.apply(tensor, place)  # type: ignore[no-untyped-call]
    return result


class _Carry(torch.autograd.Function):
    """A copy from the host to the device; its cotangent goes back, in the precision of the original."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: Place) -> Tensor:
        """Cast on arrival: what is pinned then travels as it is."""
        ctx.origin = Place.of(tensor)
        with landing("device"):
            if tensor.device == place.device:
                return tensor.to(place.dtype, copy=True)
            return tensor.to(place.device, non_blocking=True).to(place.dtype)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor, None]:
        """Waits for the copy, which the CPU reads next."""
        with landing("host"):
            return bar.to(ctx.origin.device, ctx.origin.dtype, copy=True), None
