"""The pair checkpoint: exact Hessian-vector products in about the memory of a checkpointed gradient.

Differentiating a gradient keeps the whole graph of that gradient, checkpoints or not. Here the product is instead the
gradient of a directional derivative: with pairs (x, xdot) of a value and its derivative along v,

    H v = d/dtheta of ldot,   ldot = <grad loss(theta), v> = the tangent of loss(theta + eps v) at eps = 0,

(Pearlmutter 1994, taken in reverse). A block of the network maps pairs to pairs; it runs without a graph, keeping its
input pair only, and in the backward pass runs again with a graph of its own, differentiates that and forgets it.

A model announces its blocks by calling them through `pair_block`; diffusers' and transformers' models do so after
`enable_gradient_checkpointing(gradient_checkpointing_func=pair_block)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from adapter_mu.errors import UserError
from adapter_mu.meta.pair_rules import PairRules
from adapter_mu.meta.pairs import Level, current_level, join, pair_level, run_function, split
from adapter_mu.meta.replay import Replay
from adapter_mu.meta.tensors import Params, ScalarLoss, as_leaves, gradients_of


class _Announced:
    """Counts calls of `pair_block`, so that `auto` can tell whether a loss went through announced blocks."""

    calls = 0


def announced_calls() -> int:
    """How often a block has been called through `pair_block` in this process."""
    return _Announced.calls


def pair_block(block: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """`block(*inputs, **options)`, checkpointed: for pairs within a product, as usual elsewhere.

    Args:
        block: a module; its parameters are those in force now, whatever `torch.func.functional_call` restores later.
            Anything else that is callable runs as it is.
        inputs: tensors in any nesting of lists, tuples and dictionaries, and whatever else the block takes.
        options: likewise.
    """
    _Announced.calls += 1
    if not isinstance(block, nn.Module) or not torch.is_grad_enabled():
        return block(*inputs, **options)
    if current_level() is None:
        params = dict(block.named_parameters())
        return checkpoint(_call, block, params, inputs, options, use_reentrant=False)
    call, tensors = _BlockCall.record(block, inputs, options)
    if not call.moves:
        with torch.no_grad():  # nothing that is trained lies inside or before it
            return block(*inputs, **options)
    return call.pairs(run_function(_PairBlock, call, *tensors))


def _call(block: nn.Module, params: Params, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """`block` with `params`; only those that are not in place are swapped."""
    own = dict(block.named_parameters())
    other = {name: tensor for name, tensor in params.items() if own.get(name) is not tensor}
    return torch.func.functional_call(block, other, inputs, options) if other else block(*inputs, **options)


@dataclass
class _BlockCall:
    """One call of a block on pairs: everything but the tensors, which autograd keeps.

    Attributes:
        block: the module.
        level: the forward-mode level it was recorded in.
        names: of its parameters that move; they are the last of the primals.
        constants: its other parameters, which may be of any kind (quantised, say).
        arguments: its inputs and options, flat, with None for tensors.
        layout: how to nest them again.
        places: where among the arguments the tensors belong.
        paired: for every primal, whether it has a tangent; tangents follow all primals.
        replay: random and autocast states.
        results: how to nest what it returned, and for every leaf the number of its primal and of its tangent.
    """

    block: nn.Module
    level: Level
    names: list[str]
    constants: Params
    arguments: list[Any]
    layout: TreeSpec
    places: list[int]
    paired: list[bool]
    replay: Replay
    results: tuple[TreeSpec, list[tuple[Any, int | None, int | None]]] | None = None

    @classmethod
    def record(cls, block: nn.Module, inputs: Any, options: Any) -> tuple[_BlockCall, list[Tensor]]:
        """The call and its tensors: primals of inputs and parameters, then their tangents."""
        level = current_level()
        assert level is not None
        arguments, layout = tree_flatten((inputs, options))
        places = [place for place, leaf in enumerate(arguments) if isinstance(leaf, Tensor)]
        params = {name: split(tensor) for name, tensor in block.named_parameters()}
        moving = {name: pair for name, pair in params.items() if pair[1] is not None}
        constants = {name: primal for name, (primal, _) in params.items() if name not in moving}
        halves = [split(arguments[place]) for place in places] + list(moving.values())
        for place in places:
            arguments[place] = None
        primals = [primal for primal, _ in halves]
        tangents = [tangent for _, tangent in halves if tangent is not None]
        paired = [tangent is not None for _, tangent in halves]
        call = cls(block, level, list(moving), constants, arguments, layout, places, paired, Replay.of(primals))
        return call, primals + tangents

    @property
    def moves(self) -> bool:
        """Whether anything it works on has a tangent."""
        return any(self.paired)

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """Distinct results, primals and tangents; runs in a level of its own unless one is open in this thread."""
        with pair_level(self.level.rules):
            primals, rest = tensors[: len(self.paired)], iter(tensors[len(self.paired) :])
            duals = [
                join(primal, next(rest) if moves else None) for primal, moves in zip(primals, self.paired, strict=True)
            ]
            arguments = list(self.arguments)
            for place, dual in zip(self.places, duals, strict=False):  # the parameters follow
                arguments[place] = dual
            params = self.constants | dict(zip(self.names, duals[len(self.places) :], strict=True))
            inputs, options = tree_unflatten(arguments, self.layout)
            return self._parts(_call(self.block, params, inputs, options))

    def _parts(self, returned: Any) -> list[Tensor]:
        leaves, layout = tree_flatten(returned)
        parts: list[Tensor] = []
        numbers: dict[int, tuple[Any, int | None, int | None]] = {}
        for leaf in leaves:
            if isinstance(leaf, Tensor) and id(leaf) not in numbers:
                halves = [half for half in split(leaf) if half is not None]
                where = len(parts)
                numbers[id(leaf)] = None, where, where + 1 if len(halves) == 2 else None
                parts += halves
        self.results = layout, [numbers.get(id(leaf), (leaf, None, None)) for leaf in leaves]
        return parts

    def pairs(self, parts: tuple[Tensor, ...]) -> Any:
        """What the block returned, as pairs again."""
        assert self.results is not None
        layout, numbers = self.results
        leaves = [
            leaf if primal is None else join(parts[primal], None if tangent is None else parts[tangent])
            for leaf, primal, tangent in numbers
        ]
        return tree_unflatten(leaves, layout)


class _PairBlock(torch.autograd.Function):
    """A block on flat tensors (x..., theta..., xdot..., v...) -> (y, ydot, ...), differentiated within itself."""

    @staticmethod
    def forward(ctx: Any, call: _BlockCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run it on constants, so that no graph arises although gradient mode is on (off would mean `no_grad`)."""
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        parts = call.run([tensor.detach() for tensor in tensors])
        ctx.mark_non_differentiable(*(part for part in parts if not part.is_floating_point()))
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run it again with a graph; the level is closed before that is differentiated."""
        call: _BlockCall = ctx.call
        if call.level.open:
            raise UserError("pair_checkpoint: a loss must not differentiate inside itself (autograd.grad, backward)")
        wanted = ctx.needs_input_grad[1:]
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, wanted, strict=True)]
        with call.replay.again():
            parts = call.run(leaves)
        reached = [(part, bar) for part, bar in zip(parts, bars, strict=True) if bar is not None and part.requires_grad]
        del parts, bars
        targets = [leaf for leaf in leaves if leaf.requires_grad]
        found: list[Tensor | None] = [None] * len(targets)
        if reached:
            outputs, cotangents = zip(*reached, strict=True)
            del reached
            found = list(torch.autograd.grad(outputs, targets, cotangents, allow_unused=True))
        results = iter(found)
        return None, *(next(results) if leaf.requires_grad else None for leaf in leaves)


@dataclass(frozen=True)
class PairCheckpoint:
    """A product by pairs; `chunk` as in `pair_attention`: query rows of attention at a time."""

    chunk: int | None = None

    def __call__(self, loss_fn: ScalarLoss, params: Params, vector: Params) -> tuple[Params, Params | None]:
        """Exact, as `reverse_over_reverse`; two to three checkpointed gradients, little more memory than one.

        Holds the pairs between announced blocks and one block's own graph. Without announced blocks the whole loss is
        one block. The gradient is not computed, hence None.
        """
        leaves = as_leaves(params)
        with pair_level(PairRules(self.chunk)):
            duals = {name: join(leaf, vector[name].detach().to(leaf.dtype)) for name, leaf in leaves.items()}
            _, slope = split(loss_fn(duals))
            del duals
        zero = next(iter(leaves.values())).new_zeros(())
        found = gradients_of(zero if slope is None else slope, leaves)
        return {name: entry.to(vector[name].dtype) for name, entry in found.items()}, None
