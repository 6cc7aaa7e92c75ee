"""A model, sets and a method with the shapes of the real ones: enough to go through every stage of a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from adapter_mu.data.prompts import Prompt
from adapter_mu.data.sets import LatentSet
from adapter_mu.models import Conditioning, LoadedModel, predict_noise
from adapter_mu.simulate import Sets

TOKENS = 77
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Bytes a weight: 4 or 8 bits, and the scales of blocks of 64 (in 8 bits, with a scale each 256) or of rows.
QUANTIZED = {"nf4": 0.5 + 1 / 64 + 1 / 4096, "int8": 1.0}


def skeleton(config: dict[str, Any], dtype: torch.dtype, device: str, size: int | None) -> LoadedModel:
    """A frozen UNet without weights (random ones where `device` is not meta) and a scheduler's two facts.

    Args:
        config: of the UNet.
        dtype: of its weights.
        device: "meta", or where real tensors shall be.
        size: side in latent pixels; None: the configuration's own.
    """
    from diffusers import UNet2DConditionModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = UNet2DConditionModel.from_config(config | ({"sample_size": size} if size else {}))
    finally:
        torch.set_default_dtype(before)
    scheduler = SimpleNamespace(
        config=SimpleNamespace(prediction_type="epsilon", num_train_timesteps=1000),
        alphas_cumprod=torch.linspace(0.99, 0.01, 1000),
    )
    kind = "sdxl" if unet.config.addition_embed_type == "text_time" else "sd"
    pipeline = SimpleNamespace(unet=unet.requires_grad_(False).eval(), scheduler=scheduler)
    return LoadedModel(kind, pipeline, "skeleton", "skeleton")  # type: ignore[arg-type]


def with_quantized_layers(model: LoadedModel, kind: str) -> LoadedModel:
    """The model around a copy whose Linear layers are `QuantizedShape`s."""
    unet = model.unet
    linear = {name: layer for name, layer in unet.named_modules() if type(layer) is nn.Linear}
    twin = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    for name, layer in linear.items():
        parent, _, own = name.rpartition(".")
        setattr(twin.get_submodule(parent), own, QuantizedShape(layer, kind))
    pipeline = SimpleNamespace(**{**vars(model.pipeline), "unet": twin})
    return LoadedModel(model.kind, pipeline, model.name, model.source)


class QuantizedShape(nn.Linear):
    """Takes the memory of a quantised layer, and in a call that of its matrix for a moment, as bitsandbytes does."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        """`layer`: what is replaced; its bias is kept."""
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        own = layer.weight
        count = int(own.numel() * QUANTIZED[kind])
        self.weight = nn.Parameter(torch.zeros(count, dtype=torch.uint8, device=own.device), requires_grad=False)
        self.bias = layer.bias
        self.compute_dtype = own.dtype

    def dequantized_weight(self) -> Tensor:
        """The matrix, of zeros."""
        return torch.zeros(self.out_features, self.in_features, dtype=self.compute_dtype, device=self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for; the matrix is not kept."""
        result: Tensor = _Product.apply(x, self)
        return result if self.bias is None else result + self.bias


class _Product(torch.autograd.Function):
    """X W^T, with W made anew in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedShape) -> Tensor:
        """Keeps the layer only."""
        ctx.layer = layer
        return F.linear(x, layer.dequantized_weight())

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor, None]:
        """The transposed product."""
        return bar @ ctx.layer.dequantized_weight(), None


def conditions(model: LoadedModel, rows: int) -> Conditioning:
    """Text embeddings, and SDXL's pooled ones and size."""
    config, device, dtype = model.unet.config, model.device, model.dtype
    width = config.cross_attention_dim
    embeds = torch.zeros(rows, TOKENS, width if isinstance(width, int) else width[0], dtype=dtype, device=device)
    if config.addition_embed_type != "text_time":
        return Conditioning(embeds)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return Conditioning(
        embeds,
        torch.zeros(rows, pooled, dtype=dtype, device=device),
        torch.zeros(rows, 6, dtype=dtype, device=device),
    )


def sets(model: LoadedModel) -> Sets:
    """One picture each."""
    side, channels = model.latent_size, model.unet.config.in_channels

    def one() -> LatentSet:
        latents = torch.zeros(1, channels, side, side, device=model.device)
        return LatentSet(latents, [""], conditions(model, 1), conditions(model, 1), 1000)

    return Sets(one(), one(), one())


class StandIn:
    """A method whose loss is one prediction and a target that is known: ESD's, and about the others' too."""

    def __init__(self, model: LoadedModel) -> None:
        self.latents, self.condition = sets(model).forget.latents, conditions(model, 1)

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Nothing."""

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """Mean square of a prediction."""
        x = self.latents.expand(batch_size, -1, -1, -1)
        timesteps = torch.zeros(batch_size, dtype=torch.long, device=x.device)
        return predict_noise(model, params, x, timesteps, self.condition.expand(batch_size)).square().mean()


@contextmanager
def fused_attention_on_meta() -> Iterator[None]:
    """Meta tensors have no fused attention of their own and would count whole score matrices; lend them the CPU's."""
    original: Callable[..., Tensor] = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if has_torch_function((q, k, v)):
            result: Tensor = handle_torch_function(fused, (q, k, v), q, k, v, *args, **kwargs)
            return result
        if q.is_meta and q.dim() == 4 and not args and kwargs.get("attn_mask") is None:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            result = flash(q, k, v, 0.0, False, scale=kwargs.get("scale"))[0]
            return result
        return original(q, k, v, *args, **kwargs)

    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
