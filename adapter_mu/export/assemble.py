"""Base plus adapters, weight by weight: fp32 arithmetic, one cast at the end, and what the cast cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_mu.data.cache import fingerprint_tensors
from adapter_mu.errors import ModelError
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.edits import Edits
from adapter_mu.export.layers import Edit
from adapter_mu.export.streaming import Lazy

Scaled = Sequence[tuple[Edits, float]]
"""Adapters with their weights."""


@dataclass(frozen=True)
class Rounding:
    """What the final cast did to one edited weight."""

    component: str
    name: str
    relative: float
    """Largest rounding error / largest weight."""
    lost: float
    """Norm of the rounding error / norm of the edit: at 1 the edit has drowned."""


def assemble(
    base: Checkpoint, adapters: Scaled, dtype: torch.dtype | None, rounding: list[Rounding]
) -> dict[str, dict[str, Lazy]]:
    """All weights of the merged model, made when they are called for.

    Args:
        base: where the weights come from.
        adapters: edits with their scales.
        dtype: of every floating-point weight; None keeps the base's.
        rounding: one entry is appended whenever an edited weight is made.
    """
    return {
        component: {name: _lazy(base, component, name, adapters, dtype, rounding) for name in tensors}
        for component, tensors in base.components.items()
    }


def _lazy(
    base: Checkpoint,
    component: str,
    name: str,
    adapters: Scaled,
    dtype: torch.dtype | None,
    rounding: list[Rounding],
) -> Lazy:
    stored = base.components[component][name]
    wanted = dtype if dtype and stored.dtype.is_floating_point else stored.dtype

    def make() -> Tensor:
        tensor = stored.make()
        deltas = [edit.delta(scale) for edit, scale in edits_of(adapters, component, name)]
        if deltas:
            delta = sum(deltas[1:], start=deltas[0])
            exact = as_trained(tensor, adapters) + delta
            tensor = exact.to(wanted)
            rounding.append(_rounding(component, name, exact, tensor, delta))
        tensor = tensor.to(wanted)
        if wanted.is_floating_point and not largest(tensor) < float("inf"):
            raise ModelError(
                f"{component} {name!r} of {base.name} would hold values that are not finite in {str(wanted)[6:]}:"
                " choose --dtype bf16 or fp32, or another adapter or base."
            )
        return tensor

    return Lazy(wanted, stored.shape, make)


def edits_of(adapters: Scaled, component: str, name: str) -> list[tuple[Edit, float]]:
    """What the adapters do to one weight, with their scales."""
    found = [(edits.components.get(component, {}).get(name), scale) for edits, scale in adapters]
    return [(edit, scale) for edit, scale in found if edit is not None]


def as_trained(tensor: Tensor, adapters: Scaled) -> Tensor:
    """A weight of the base as its adapter saw it, in fp32: an edit is relative to what the cast had left."""
    dtype = next((edits.base_dtype for edits, _ in adapters if edits.base_dtype), torch.float32)
    return tensor.to(dtype).to(torch.float32)


def _rounding(component: str, name: str, exact: Tensor, cast: Tensor, delta: Tensor) -> Rounding:
    if cast.dtype == exact.dtype:
        return Rounding(component, name, 0.0, 0.0)
    error = cast.to(torch.float32).sub_(exact)
    size, moved = largest(exact), float(delta.norm())
    return Rounding(
        component, name, largest(error) / size if size else 0.0, float(error.norm()) / moved if moved else 0.0
    )


def largest(tensor: Tensor) -> float:
    """The largest magnitude, NaN if there is one; many times faster than through `abs` or `isfinite`."""
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))


def check_base(base: Checkpoint, edits: Edits, dtypes: Mapping[str, torch.dtype]) -> None:
    """ModelError when the adapter says which weights it was trained on and the base has others.

    Args:
        base: the base that was named.
        edits: the adapter; one without a word about its base passes.
        dtypes: by the names that adapters' metadata use; the base is compared in the dtype of the training.
    """
    expected = edits.metadata.get("base_hash")
    if expected is None:
        return
    dtype = dtypes.get(edits.metadata.get("base_dtype", "fp32"), torch.float32)
    unet = base.components["unet"]
    if fingerprint_tensors((name, unet[name].make().to(dtype)) for name in sorted(unet)) != expected:
        raise ModelError(
            f"{edits.name} was trained on other weights than those of '{base.name}' (on"
            f" {edits.metadata.get('base', 'another model')}): give that --base, or --force to merge all the same."
        )
