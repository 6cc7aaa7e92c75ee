"""Before a run: does the pair checkpoint give, on this model, what double backward gives?

Some operations have a forward derivative that is wrong without an error as soon as it is differentiated again; no
list of them can be complete. So every type of layer that the model really uses is tried in float64, where rounding
hides nothing, and then the model as a whole, in its own precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from adapter_mu.errors import ModelError
from adapter_mu.meta.hvp import reverse_over_reverse
from adapter_mu.meta.pair_checkpoint import PairCheckpoint
from adapter_mu.meta.tensors import Params, norm

# Relative distance allowed for the whole model: generous multiples of what rounding was seen to do.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}
LAYER_TOLERANCE = 1e-8
LARGEST = 2**24  # parameters of a layer that is tried on its own: larger ones are made of those, and float64 is big
CHUNK = 3  # query rows: small enough that attention is really taken in portions
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def check_product(
    module: nn.Module, run: Callable[[], Tensor], loss: Callable[[Params], Tensor], params: Mapping[str, Tensor]
) -> None:
    """Compare one product with reverse-over-reverse, by layer type and as a whole.

    Args:
        module: the model; it is run as it is set up now, so its attention must be twice differentiable.
        run: calls it once at a reduced size; shows which types of layers are used, and on what.
        loss: of `params`, at a reduced size; goes through the model.
        params: where to take the product of the whole.

    Raises:
        ModelError: they differ; names the types of layers at fault, and the distance.
    """
    wrong = wrong_layers(module, run)
    direction = {name: torch.randn_like(tensor) for name, tensor in params.items()}
    error = _distance(loss, dict(params), direction)
    dtype = max((p.dtype for p in module.parameters() if p.is_floating_point()), key=lambda d: torch.finfo(d).eps)
    if wrong or not error <= TOLERANCE[dtype]:
        names = "; ".join(f"{kind}: {fault}" for kind, fault in wrong.items()) or "no single type of layer"
        raise ModelError(
            "pair_checkpoint does not give this model's Hessian-vector product"
            f" (relative error {error:.1e} as a whole; at fault: {names}): set meta.hvp=reverse_over_reverse"
        )


def wrong_layers(module: nn.Module, run: Callable[[], Tensor]) -> dict[str, str]:
    """Types of layers whose product is wrong or fails, smallest first, each with the distance or the error.

    A type that merely contains a wrong one is left out. Layers that cannot be cast to float64 (quantised) and large
    ones are only tried as part of the whole.
    """
    wrong: dict[str, str] = {}
    guilty: list[type] = []
    for layer, args, options in sorted(_one_of_each(module, run), key=lambda call: len(list(call[0].modules()))):
        if _size(layer) > LARGEST or any(isinstance(part, tuple(guilty)) for part in layer.modules()):
            continue
        if fault := _fault(layer, args, options):
            guilty.append(type(layer))
            wrong[type(layer).__name__] = fault
    return wrong


def _one_of_each(module: nn.Module, run: Callable[[], Tensor]) -> list[Call]:
    """A call of the smallest layer of each type, as seen in a run."""
    calls: dict[type, Call] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        known = calls.get(type(layer))
        if known is None or _size(layer) < _size(known[0]):
            calls[type(layer)] = layer, args, options

    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in module.modules() if part is not module]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _fault(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> str | None:
    """What is wrong with a layer's product in float64 with respect to its parameters and inputs; None if nothing."""
    if any(not p.is_floating_point() for p in layer.parameters()):
        return None
    layer = copy.deepcopy(layer).double()
    leaves, layout = tree_flatten(tree_map_only(Tensor, _double, (args, options)))
    inputs = {f" {n}": t for n, t in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()}
    params = {name: p.detach() for name, p in layer.named_parameters()} | inputs

    def loss(point: Params) -> Tensor:
        replaced = [point.get(f" {n}", leaf) for n, leaf in enumerate(leaves)]
        now, named = tree_unflatten(replaced, layout)
        own = {name: tensor for name, tensor in point.items() if name not in inputs}
        results = tree_flatten(torch.func.functional_call(layer, own, now, named))[0]
        return torch.stack([torch.sin(r).sum() for r in results if isinstance(r, Tensor)]).sum()

    generator = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        for name, tensor in params.items()
    }
    if not params:
        return None
    try:
        error = _distance(loss, params, direction)
    except (RuntimeError, NotImplementedError) as failure:
        return str(failure).splitlines()[0]
    return None if error <= LAYER_TOLERANCE else f"relative error {error:.1e}"


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _distance(loss: Callable[[Params], Tensor], params: Params, direction: Params) -> float:
    """Relative distance of the two products; the same random numbers for both."""
    devices = sorted({tensor.get_device() for tensor in params.values() if tensor.is_cuda})
    results = []
    for product in (reverse_over_reverse, PairCheckpoint(CHUNK)):
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            results.append(product(loss, params, direction)[0])
    expected, found = results
    length = norm(expected)
    distance = norm({name: found[name] - expected[name] for name in expected})
    return distance / length if length > 0 else distance
