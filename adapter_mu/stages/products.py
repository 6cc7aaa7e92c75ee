"""Setting a UNet up for the products that the exact meta gradient needs."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapter_mu.meta import check_product, frozen_linear, pair_block
from adapter_mu.models import announce_blocks, check_twice_differentiable, prepare_for_meta, smallest_inputs
from adapter_mu.params import Adapter, AttachedLora, Lora, call_with
from adapter_mu.recipe import Recipe


def prepare_products(unet: Any, recipe: Recipe) -> bool:
    """As `meta.hvp` and `train.checkpointing` say; then prove on a tiny input that the product is right.

    Pairs are for checkpointed training (or where asked for): without checkpoints double backward is faster.

    Returns:
        Whether products will be made by pairs.

    Raises:
        ModelError: this UNet has no second derivative, or the pair product is not it; names the layers at fault.
    """
    assert recipe.meta is not None
    wanted, checkpointing = recipe.meta.hvp, recipe.train.checkpointing
    if wanted == "pair_checkpoint" or (wanted == "auto" and checkpointing):
        announce_blocks(unet, pair_block, frozen_linear)
        check_pairs(unet)
        return True
    prepare_for_meta(unet, checkpointing=checkpointing)
    check_twice_differentiable(unet)
    return False


def beside_the_base(unet: Any, recipe: Recipe, adapter: Adapter) -> Adapter:
    """A LoRA adapter that is applied beside the layers, where the attacker moves in it; others as they are."""
    if isinstance(adapter, Lora) and recipe.meta is not None and recipe.meta.attacker.space == "adapter":
        return cast(Adapter, AttachedLora(unet, adapter))
    return adapter


def check_pairs(unet: Any) -> None:
    """Compare the pair product with double backward at the smallest size, in biases, norms and one query matrix.

    Every layer lies behind one of these, so that every derivative takes part, at a few megabytes.

    Raises:
        ModelError: they differ; names the types of layers at fault.
    """
    (x, text), added = smallest_inputs(unet)
    x, text = x.detach(), text.detach()
    own = {name: p.detach() for name, p in unet.named_parameters() if p.is_floating_point()}
    query = next((name for name in own if name.endswith("attn1.to_q.weight")), None)
    params = {name: p for name, p in own.items() if p.dim() == 1 or name == query}

    def run(params: dict[str, Tensor]) -> Tensor:
        output: Tensor = call_with(unet, params, x, 1, text, added_cond_kwargs=added, return_dict=False)[0]
        return output

    # Fused attention has no second derivative, its explicit form has; pairs have their own.
    with sdpa_kernel([SDPBackend.MATH]):
        check_product(unet, lambda: run({}), lambda params: run(params).float().square().mean(), params)
