"""Adapters: what is trained, saved and merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from adapter_mu.errors import ModelError, RecipeError, UserError
from adapter_mu.params.dense import DenseDelta
from adapter_mu.params.factors import pairs
from adapter_mu.params.files import read_tensors, write_tensors
from adapter_mu.params.lora import Lora
from adapter_mu.params.low_rank import LowRank

FORMAT = "1"
_FORMAT_KEY = "adapter_mu_format"


class Adapter(Protocol):
    """Small trainable tensors theta, and how they become weights of the base."""

    @property
    def kind(self) -> str:
        """One of "lora", "dense", "low_rank"."""

    @property
    def subset(self) -> str:
        """Name or expression of the subset."""

    def parameters(self) -> dict[str, Tensor]:
        """Theta: trainable leaf tensors, fp32 (float64 over a float64 base), always the same objects."""

    def materialize(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merged dense weights by module parameter name, in theta's dtype; differentiable in theta."""

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors to save."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set theta, in place, from tensors of the names and shapes of `state_dict`."""

    def metadata(self) -> dict[str, str]:
        """Kind, subset and settings, for the file."""


def make_adapter(
    module: nn.Module,
    kind: str,
    subset: str,
    *,
    rank: int = 16,
    alpha: float | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> Adapter:
    """A fresh adapter that changes nothing yet.

    Args:
        module: the base (a UNet).
        kind: "lora" or "dense".
        subset: see `adapter_mu.params.subsets.select`.
        rank: of LoRA factors.
        alpha: LoRA scales its delta by alpha / rank; None means alpha = rank.
        seed: of the LoRA factors.
        device: where theta lies; None: where the module does.

    Raises:
        RecipeError: unknown kind, bad rank or alpha, or an empty subset.
    """
    if kind == "lora":
        return Lora(module, subset, rank, alpha, seed, device)
    if kind == "dense":
        return DenseDelta(module, subset, device)
    raise RecipeError(f"adapter kind is {kind!r}: choose lora or dense")


def pull_back(adapter: Adapter, theta: Mapping[str, Tensor], dense_gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient with respect to theta of a loss whose gradient with respect to the merged weights is known.

    This is the vector-Jacobian product of `materialize`: it lets the attacker move in the whole space while theta
    stays small.

    Args:
        adapter: defines the map from theta to merged weights.
        theta: where; not changed.
        dense_gradient: by module parameter name, shaped like the weights. A merged weight without an entry counts as
            zero; entries for weights that the adapter does not touch do not depend on theta and are passed over.

    Returns:
        A gradient for every name in theta.

    Raises:
        UserError: not one entry belongs to a weight of the adapter.
    """
    leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in theta.items()}
    with torch.enable_grad():
        merged = adapter.materialize(leaves)
    shared = [name for name in merged if name in dense_gradient]
    if not shared:
        raise UserError("none of the gradients belongs to a weight of this adapter: pass module parameter names")
    pulled = torch.autograd.grad(
        [merged[name] for name in shared],
        list(leaves.values()),
        grad_outputs=[dense_gradient[name].to(merged[name].dtype) for name in shared],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, pulled, strict=True))


def save_adapter(adapter: Adapter, path: str | Path, extra_metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the adapter's own metadata and `extra_metadata` (base name and hash, recipe hash).

    Where keys clash the adapter's own win. The file appears complete or not at all.
    """
    metadata = {**(extra_metadata or {}), **adapter.metadata(), _FORMAT_KEY: FORMAT}
    write_tensors(Path(path), adapter.state_dict(), metadata)


def load_adapter(module: nn.Module, path: str | Path) -> Adapter:
    """The saved adapter, on the base it was made for.

    Raises:
        ModelError: no such file, a pickle, truncated, not written by adapter_mu, or made for another architecture.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if metadata.get(_FORMAT_KEY) != FORMAT:
        found = metadata.get(_FORMAT_KEY, "none")
        raise ModelError(f"{path} is no adapter_mu file of format {FORMAT} (found {found}): save it with this version")
    try:
        adapter = _from_metadata(module, metadata, tensors)
    except (KeyError, ValueError, RecipeError) as error:
        raise ModelError(f"{path} does not fit this model or its metadata is damaged: {error}") from error
    _check_fit(path, adapter.state_dict(), tensors)
    adapter.load_state_dict(tensors)
    return adapter


def _from_metadata(module: nn.Module, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Adapter:
    if metadata["kind"] == "low_rank":
        return LowRank(module, metadata["subset"], pairs(tensors))
    if metadata["kind"] != "lora":
        return make_adapter(module, metadata["kind"], metadata["subset"])
    rank = int(metadata["rank"])
    # Before anything is allocated: the file's tensors must have the rank that it claims.
    if {tuple(t.shape[:1]) for name, t in tensors.items() if name.endswith("lora_A.weight")} != {(rank,)}:
        raise ValueError(f"its factors do not have rank {rank}")
    return make_adapter(module, "lora", metadata["subset"], rank=rank, alpha=float(metadata["alpha"]))


def _check_fit(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    if strangers := sorted(expected.keys() ^ found.keys()):
        what = "has an unknown" if strangers[0] in found else "lacks the"
        raise ModelError(f"{path} {what} tensor {strangers[0]!r}: was it made for another model?")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ModelError(
                f"{path} has {name!r} of shape {tuple(found[name].shape)} where this model needs "
                f"{tuple(tensor.shape)}: was it made for another model?"
            )
