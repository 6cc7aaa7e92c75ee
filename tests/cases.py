"""Small problems in float64 that have the structure of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from adapter_mu.params import Adapter, call_with, make_adapter

CONTEXT, TOKENS, POOLED, TIME_EMBED = 12, 3, 10, 4
LATENTS = (2, 4, 4, 4)
Params = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An attack: losses as functions of `params`, and one batch per attacker step."""

    inner_loss: Callable[[Params, Any], Tensor]
    outer_loss: Callable[[Params], Tensor]
    params: Params
    batches: list[Any]


def tiny_unet(kind: str) -> UNet2DConditionModel:
    """A frozen SD or SDXL UNet, a few ten thousand float64 parameters, whose attention has a second derivative."""
    settings: dict[str, Any] = {
        "sample_size": LATENTS[-1],
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "cross_attention_dim": CONTEXT,
        "attention_head_dim": 2,
    }
    if kind == "sd":
        settings |= {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
    else:
        settings |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBED,
            "projection_class_embeddings_input_dim": 6 * TIME_EMBED + POOLED,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**settings).double()
    unet.set_attn_processor(AttnProcessor())  # the default, fused one cannot be differentiated twice
    return unet.eval().requires_grad_(False)


def noise_batch(unet: UNet2DConditionModel, seed: int) -> dict[str, Any]:
    """Arguments for the UNet and the noise it should predict."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = LATENTS[0]
    batch: dict[str, Any] = {
        "sample": normal(*LATENTS),
        "timestep": torch.randint(1000, (rows,), generator=generator),
        "encoder_hidden_states": normal(rows, TOKENS, CONTEXT),
    }
    if unet.config.addition_embed_type == "text_time":
        time_ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]], dtype=torch.float64).expand(rows, -1)
        batch["added_cond_kwargs"] = {"text_embeds": normal(rows, POOLED), "time_ids": time_ids}
    return {"inputs": batch, "noise": normal(*LATENTS)}


def noise_loss(unet: UNet2DConditionModel, params: Params, batch: dict[str, Any]) -> Tensor:
    """Mean squared error of the predicted noise with `params` in place."""
    return (call_with(unet, params, **batch["inputs"]).sample - batch["noise"]).square().mean()


def moved_adapter(unet: UNet2DConditionModel, kind: str, subset: str) -> Adapter:
    """An adapter away from its start: at B = 0 a LoRA's A would have no gradient at all."""
    adapter = make_adapter(unet, kind, subset, rank=2, alpha=4.0, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in adapter.parameters().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return adapter


def unet_case(model: str, kind: str, subset: str, steps: int) -> tuple[Case, Adapter]:
    """The attacker and the outer loss act on the adapter's own tensors; the outer loss ascends on a fresh batch."""
    unet = tiny_unet(model)
    adapter = moved_adapter(unet, kind, subset)
    judge = noise_batch(unet, 99)
    case = Case(
        inner_loss=lambda theta, batch: noise_loss(unet, adapter.materialize(theta), batch),
        outer_loss=lambda theta: -noise_loss(unet, adapter.materialize(theta), judge),
        params=adapter.parameters(),
        batches=[noise_batch(unet, 10 + step) for step in range(steps)],
    )
    return case, adapter


def quadratic_case(steps: int) -> Case:
    """0.5 p^T Q p + b^T p over two tensors; Q and b are the batch."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def quadratic(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        point = torch.cat([params["a"].flatten(), params["b"]])
        return 0.5 * point @ batch[0] @ point + batch[1] @ point

    batches = [((square := draw(7, 7)) @ square.T, draw(7)) for _ in range(steps + 1)]
    judge = batches.pop()
    return Case(quadratic, lambda params: quadratic(params, judge), {"a": draw(2, 2), "b": draw(3)}, batches)


def mlp_case(steps: int, dtype: torch.dtype = torch.float64) -> Case:
    """A two-layer perceptron whose Hessian is small enough to write down."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
        batches = [(torch.randn(5, 3).to(dtype), torch.randn(5, 2).to(dtype)) for _ in range(steps + 1)]

    def error(params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (call_with(net, params, batch[0]) - batch[1]).square().mean()

    judge = batches.pop()
    return Case(error, lambda params: error(params, judge), dict(net.named_parameters()), batches)
