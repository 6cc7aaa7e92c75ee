"""Setting a model up for training: products of the Hessian, what lies where, and everything back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapter_mu.errors import RecipeError
from adapter_mu.meta import check_product, frozen_linear, pair_block
from adapter_mu.models import (
    LoadedModel,
    announce_blocks,
    check_twice_differentiable,
    encoders_at,
    is_quantized,
    prepare_for_first_order,
    prepare_for_meta,
    quantized_unet,
    smallest_inputs,
)
from adapter_mu.params import Adapter, AttachedLora, Lora, call_with, streamed
from adapter_mu.recipe import Recipe
from adapter_mu.stages.setting import pick_device

HALF = (torch.bfloat16, torch.float16)


def check_memory(recipe: Recipe) -> None:
    """RecipeError where what lies where cannot go together."""
    in_adapter = recipe.meta is None or recipe.meta.attacker.space == "adapter"
    if recipe.base.quantize != "none" and not (recipe.adapter.kind == "lora" and in_adapter):
        raise RecipeError(
            f"`base.quantize` is {recipe.base.quantize}, whose weights cannot move; set adapter.kind to lora and"
            " meta.attacker.space to adapter."
        )
    if recipe.base.quantize != "none" and recipe.meta and recipe.meta.hvp == "reverse_over_reverse":
        raise RecipeError("`base.quantize` needs products by pairs; set meta.hvp to auto and train.checkpointing.")


def states_device(recipe: Recipe, model: LoadedModel) -> torch.device:
    """Where theta lies while it is trained."""
    return torch.device("cpu") if recipe.train.memory.states == "cpu" else training_device(recipe, model)


def training_device(recipe: Recipe, model: LoadedModel) -> torch.device:
    """Where the UNet runs; a base that will be quantised waits on the CPU itself."""
    return torch.device(pick_device(recipe.base.device)) if recipe.base.quantize != "none" else model.device


@contextmanager
def set_up(
    model: LoadedModel, recipe: Recipe, adapter: Adapter, *, checked: bool = True, draws: bool = False
) -> Iterator[tuple[LoadedModel, Adapter]]:
    """The model and the adapter as training uses them; the model is put back afterwards.

    `checked`: whether to prove first that the product is right, which takes real numbers. `draws`: whether the method
    encodes prompts and draws pictures while it trains, so that the encoders have to stay.

    Raises:
        ModelError: no second derivative, a wrong product (names the layers at fault), or no bitsandbytes.
    """
    with ExitStack() as stack:
        if recipe.train.memory.encoders == "release" and not draws:
            stack.enter_context(encoders_at(model, torch.device("cpu")))
        if recipe.base.quantize != "none" and not _quantized(model.unet):
            model = stack.enter_context(quantized_unet(model, recipe.base.quantize, training_device(recipe, model)))
        unet = model.unet
        stack.callback(_put_back, unet)
        paired = _prepare(unet, recipe, checked)
        unet.train(recipe.train.checkpointing)
        own = beside_the_base(unet, recipe, adapter, paired)
        if paired and checked and isinstance(own, AttachedLora):
            check_factors(unet, own)
        if _apart(recipe, model, own):
            stack.enter_context(streamed(unet))
        yield model, own


def _put_back(unet: Any) -> None:
    unet.eval()
    prepare_for_first_order(unet)


def _prepare(unet: Any, recipe: Recipe, checked: bool) -> bool:
    """Whether products will be made by pairs."""
    meta = recipe.meta
    if meta is not None and meta.order != "first_order" and meta.attacker.steps > 0:
        return prepare_products(unet, recipe, checked=checked)
    prepare_for_first_order(unet, checkpointing=recipe.train.checkpointing)
    return False


def prepare_products(unet: Any, recipe: Recipe, *, checked: bool = True) -> bool:
    """As `meta.hvp` and `train.checkpointing` say; then prove on a tiny input that the product is right.

    Pairs are for checkpointed training and for quantised layers (or where asked for): without checkpoints double
    backward is faster.

    Returns:
        Whether products will be made by pairs.

    Raises:
        ModelError: this UNet has no second derivative, or the pair product is not it; names the layers at fault.
    """
    assert recipe.meta is not None
    wanted, checkpointing = recipe.meta.hvp, recipe.train.checkpointing
    if wanted == "pair_checkpoint" or (wanted == "auto" and (checkpointing or _quantized(unet))):
        announce_blocks(unet, pair_block, frozen_linear)
        if checked:
            check_pairs(unet)
        return True
    prepare_for_meta(unet, checkpointing=checkpointing)
    if checked:
        check_twice_differentiable(unet)
    return False


def beside_the_base(unet: Any, recipe: Recipe, adapter: Adapter, paired: bool) -> Adapter:
    """A LoRA adapter applied beside the layers where it can be and has to; others as they are.

    It has to where merging would make a dense weight for pairs, or would round the factors' work away: in half
    precision a merged weight loses what the factors add below its last bit, and a quantised weight cannot be merged.
    """
    in_adapter = recipe.meta is None or recipe.meta.attacker.space == "adapter"
    needed = paired or unet.dtype in HALF or _quantized(unet)
    if isinstance(adapter, Lora) and in_adapter and needed:
        return cast(Adapter, AttachedLora(unet, adapter))
    return adapter


def _quantized(unet: Any) -> bool:
    return any(is_quantized(layer) for layer in unet.modules())


def _apart(recipe: Recipe, model: LoadedModel, adapter: Adapter) -> bool:
    """Whether dense weights lie elsewhere, or are finer, than the layers they stand in for."""
    if isinstance(adapter, AttachedLora):
        return False
    return model.dtype in HALF or recipe.train.memory.states == "cpu"


def check_pairs(unet: Any) -> None:
    """Compare the pair product with double backward at the smallest size, in biases, norms and one query matrix.

    Every layer lies behind one of these, so that every derivative takes part, at a few megabytes. Quantised layers
    stay as they are.

    Raises:
        ModelError: they differ; names the types of layers at fault.
    """
    fixed = {id(p) for layer in unet.modules() if is_quantized(layer) for p in layer.parameters()}
    own = {n: p.detach() for n, p in unet.named_parameters() if p.is_floating_point() and id(p) not in fixed}
    query = next((name for name in own if name.endswith("attn1.to_q.weight")), None)
    _check(unet, {name: p for name, p in own.items() if p.dim() == 1 or name == query}, dict)


def check_factors(unet: Any, adapter: AttachedLora) -> None:
    """The same for the UNet with a LoRA beside its layers, in factors away from their start.

    Raises:
        ModelError: they differ; names the types of layers at fault.
    """
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: t.detach() + 0.02 * torch.randn(t.shape, generator=generator).to(t)
        for name, t in adapter.parameters().items()
    }
    _check(unet, moved, adapter.materialize)


def _check(unet: Any, params: dict[str, Tensor], weights: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """`weights`: from `params` to what the UNet is called with."""
    (x, text), added = smallest_inputs(unet)
    x, text = x.detach(), text.detach()

    def run(params: dict[str, Tensor]) -> Tensor:
        output: Tensor = call_with(unet, weights(params), x, 1, text, added_cond_kwargs=added, return_dict=False)[0]
        return output

    # Fused attention has no second derivative, its explicit form has; pairs have their own.
    with sdpa_kernel([SDPBackend.MATH]):
        module = getattr(weights(params), "module", unet)
        check_product(module, lambda: run(params), lambda params: run(params).float().square().mean(), params)
