"""Attention that can be differentiated twice, and checkpointing that keeps replaced parameters.

The exact meta gradient differentiates a gradient. PyTorch's fused attention kernels (flash and memory-efficient SDPA,
xformers) have no second derivative; explicit softmax attention has. Forcing SDPA's math kernel would do as well, but
only in a context that must span forward, backward and every recomputation, so the processor is replaced instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapter_mu.errors import ModelError
from adapter_mu.params.functional import call_with

TEXT_TOKENS = 2


def prepare_for_meta(unet: Any, *, checkpointing: bool = False) -> None:
    """Give every attention layer explicit softmax attention (twice differentiable; memory grows with tokens squared).

    With `checkpointing`, activations inside blocks are recomputed in backward; train and eval mode are left alone.
    """
    from diffusers.models.attention_processor import AttnProcessor

    _prepare(unet, AttnProcessor(), checkpointing)


def prepare_for_first_order(unet: Any, *, checkpointing: bool = False) -> None:
    """Give every attention layer fused SDPA: fast and lean for sampling and attacks, but no second derivative."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    _prepare(unet, AttnProcessor2_0(), checkpointing)


def check_twice_differentiable(unet: Any) -> None:
    """Differentiate this UNet twice at the smallest image its blocks allow, as it is set up now.

    Raises:
        ModelError: there is no second derivative; names the attention processors and layers at fault.
    """
    leaves, added = smallest_inputs(unet)
    try:
        _differentiate_twice(lambda x, text: unet(x, 1, text, added_cond_kwargs=added, return_dict=False)[0], leaves)
    except RuntimeError as error:
        culprits = _culprits(unet) or "no attention layer alone is at fault"
        raise ModelError(
            f"this UNet cannot be differentiated twice, as the exact meta gradient needs ({culprits}):"
            f" call prepare_for_meta(unet) first. PyTorch says: {str(error).splitlines()[0]}"
        ) from error


def smallest_inputs(unet: Any) -> tuple[list[Tensor], dict[str, Tensor] | None]:
    """Random latents and text embeddings at the smallest size the blocks allow, and SDXL's added conditions."""
    config = unet.config
    # Two latent pixels at the bottleneck: a single token would hide that attention is at fault.
    side = 2 * 2 ** (len(config.block_out_channels) - 1)
    leaves = [_leaf(unet, 1, config.in_channels, side, side), _leaf(unet, 1, TEXT_TOKENS, _text_width(unet))]
    if config.addition_embed_type != "text_time":
        return leaves, None
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return leaves, {"text_embeds": _leaf(unet, 1, pooled).detach(), "time_ids": _leaf(unet, 1, 6).detach()}


def _prepare(unet: Any, processor: object, checkpointing: bool) -> None:
    unet.set_attn_processor(processor)
    if checkpointing:
        unet.enable_gradient_checkpointing(_checkpoint_with_parameters)
    else:
        unet.disable_gradient_checkpointing()


def _checkpoint_with_parameters(block: nn.Module, *inputs: Any) -> Any:
    """Non-reentrant checkpoint of `block` that remembers which parameters it ran with.

    `call_with` puts a module's own parameters back when it returns, long before backward recomputes the block. The
    stock function would then recompute with those: an error if they are frozen, wrong gradients if they are not.
    """
    return checkpoint(call_with, block, dict(block.named_parameters()), *inputs, use_reentrant=False)


def _differentiate_twice(function: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    gradients = torch.autograd.grad(function(*leaves).float().sum(), leaves, create_graph=True)
    if not all(gradient.requires_grad for gradient in gradients):
        raise RuntimeError("a gradient came back without a graph")
    total = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum()
    torch.autograd.grad(total, leaves)


def _culprits(unet: nn.Module) -> str:
    """Processors whose layers fail on their own, such as "AttnProcessor2_0 in 32 layers, first 'down_blocks...'"."""
    from diffusers.models.attention_processor import Attention

    layers: dict[str, list[str]] = defaultdict(list)
    for name, layer in unet.named_modules():
        if not isinstance(layer, Attention):
            continue
        leaves = [_leaf(unet, 1, 4, layer.query_dim)]
        if layer.is_cross_attention:
            leaves.append(_leaf(unet, 1, TEXT_TOKENS, layer.cross_attention_dim))
        try:
            _differentiate_twice(layer, leaves)
        except RuntimeError:
            layers[type(layer.processor).__name__].append(name)
    return "; ".join(f"{kind} in {len(names)} layers, first '{names[0]}'" for kind, names in layers.items())


def _text_width(unet: Any) -> int:
    width = unet.config.cross_attention_dim
    return int(width if isinstance(width, int) else width[0])


def _leaf(unet: Any, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Drawn on the CPU: no global random state is touched, and a meta device gets a shape only.
    return torch.randn(*shape, generator=generator).to(unet.device, unet.dtype).requires_grad_()
