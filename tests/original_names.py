"""Keys and shapes of the published SD 1.5 and SDXL files, by walking their own configurations as their code does.

Nothing here is shared with `adapter_mu.export`: the UNet is built like `ldm.modules.diffusionmodules.openaimodel`, the
VAE like `ldm.modules.diffusionmodules.model`, the second text encoder like OpenCLIP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Shapes = dict[str, tuple[int, ...]]

SD15: dict[str, Any] = {"context": 768, "attention": (1, 2, 4), "mult": (1, 2, 4, 4), "depth": (1, 1, 1, 1)}
SDXL: dict[str, Any] = {"context": 2048, "attention": (2, 4), "mult": (1, 2, 4), "depth": (0, 2, 10), "pooled": 2816}


def _pair(name: str, *weight: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def _resnet(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _pair(f"{name}.in_layers.0", inputs) | _pair(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    shapes |= _pair(f"{name}.emb_layers.1", outputs, 1280) | _pair(f"{name}.out_layers.0", outputs)
    shapes |= _pair(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    return shapes | (_pair(f"{name}.skip_connection", outputs, inputs, 1, 1) if inputs != outputs else {})


def _transformer(name: str, width: int, depth: int, context: int, linear: bool) -> Shapes:
    projection = (width, width) if linear else (width, width, 1, 1)
    shapes = _pair(f"{name}.norm", width) | _pair(f"{name}.proj_in", *projection)
    for block in (f"{name}.transformer_blocks.{i}" for i in range(depth)):
        for attention, keys in (("attn1", width), ("attn2", context)):
            for letter, inputs in (("q", width), ("k", keys), ("v", keys)):
                shapes |= _pair(f"{block}.{attention}.to_{letter}", width, inputs, bias=False)
            shapes |= _pair(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _pair(f"{block}.ff.net.0.proj", 8 * width, width) | _pair(f"{block}.ff.net.2", width, 4 * width)
        for norm in (1, 2, 3):
            shapes |= _pair(f"{block}.norm{norm}", width)
    return shapes | _pair(f"{name}.proj_out", *projection)


def unet(model: dict[str, Any]) -> Shapes:
    """The UNet, without its prefix."""
    channels, linear = 320, "pooled" in model
    shapes = _pair("time_embed.0", 1280, channels) | _pair("time_embed.2", 1280, 1280)
    if linear:
        shapes |= _pair("label_emb.0.0", 1280, model["pooled"]) | _pair("label_emb.0.2", 1280, 1280)
    shapes |= _pair("input_blocks.0.0", channels, 4, 3, 3)
    widths, now, reduced, number = [channels], channels, 1, 1

    def attend(name: str, level: int) -> Shapes:
        return _transformer(name, now, model["depth"][level], model["context"], linear)

    for level, mult in enumerate(model["mult"]):
        for _ in range(2):
            shapes |= _resnet(f"input_blocks.{number}.0", now, mult * channels)
            now = mult * channels
            if reduced in model["attention"]:
                shapes |= attend(f"input_blocks.{number}.1", level)
            widths, number = [*widths, now], number + 1
        if level < len(model["mult"]) - 1:
            shapes |= _pair(f"input_blocks.{number}.0.op", now, now, 3, 3)
            widths, number, reduced = [*widths, now], number + 1, 2 * reduced
    shapes |= _resnet("middle_block.0", now, now) | attend("middle_block.1", -1) | _resnet("middle_block.2", now, now)
    number = 0
    for level, mult in reversed(list(enumerate(model["mult"]))):
        for i in range(3):
            shapes |= _resnet(f"output_blocks.{number}.0", now + widths.pop(), mult * channels)
            now, place = mult * channels, 1
            if reduced in model["attention"]:
                shapes, place = shapes | attend(f"output_blocks.{number}.1", level), 2
            if level and i == 2:
                shapes |= _pair(f"output_blocks.{number}.{place}.conv", now, now, 3, 3)
                reduced //= 2
            number += 1
    return shapes | _pair("out.0", channels) | _pair("out.2", 4, channels, 3, 3)


def vae() -> Shapes:
    """The autoencoder, without its prefix."""
    shapes = _pair("quant_conv", 8, 8, 1, 1) | _pair("post_quant_conv", 4, 4, 1, 1)
    mults = (1, 2, 4, 4)
    for side, first, last in (("encoder", (128, 3), 8), ("decoder", (512, 4), 3)):
        shapes |= _pair(f"{side}.conv_in", *first, 3, 3)
        now = first[0] if side == "decoder" else 128
        levels = list(enumerate(mults)) if side == "encoder" else list(reversed(list(enumerate(mults))))
        for level, mult in levels:
            path = f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"
            for i in range(2 if side == "encoder" else 3):
                shapes |= _vae_block(f"{path}.block.{i}", now, 128 * mult)
                now = 128 * mult
            if side == "encoder" and level < 3:
                shapes |= _pair(f"{path}.downsample.conv", now, now, 3, 3)
            if side == "decoder" and level > 0:
                shapes |= _pair(f"{path}.upsample.conv", now, now, 3, 3)
        for i in (1, 2):
            shapes |= _vae_block(f"{side}.mid.block_{i}", 512, 512)
        shapes |= _pair(f"{side}.mid.attn_1.norm", 512)
        for name in ("q", "k", "v", "proj_out"):
            shapes |= _pair(f"{side}.mid.attn_1.{name}", 512, 512, 1, 1)
        shapes |= _pair(f"{side}.norm_out", now) | _pair(f"{side}.conv_out", last, now, 3, 3)
    return shapes


def _vae_block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _pair(f"{name}.norm1", inputs) | _pair(f"{name}.conv1", outputs, inputs, 3, 3)
    shapes |= _pair(f"{name}.norm2", outputs) | _pair(f"{name}.conv2", outputs, outputs, 3, 3)
    return shapes | (_pair(f"{name}.nin_shortcut", outputs, inputs, 1, 1) if inputs != outputs else {})


def clip_l() -> Shapes:
    """CLIP ViT-L/14's text model, from `text_model.` on."""
    shapes: Shapes = {"text_model.embeddings.position_ids": (1, 77)}
    shapes |= _pair("text_model.embeddings.token_embedding", 49408, 768, bias=False)
    shapes |= _pair("text_model.embeddings.position_embedding", 77, 768, bias=False)
    for path in (f"text_model.encoder.layers.{i}" for i in range(12)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _pair(f"{path}.self_attn.{name}", 768, 768)
        shapes |= _pair(f"{path}.layer_norm1", 768) | _pair(f"{path}.layer_norm2", 768)
        shapes |= _pair(f"{path}.mlp.fc1", 3072, 768) | _pair(f"{path}.mlp.fc2", 768, 3072)
    return shapes | _pair("text_model.final_layer_norm", 768)


def open_clip_g() -> Shapes:
    """OpenCLIP ViT-bigG/14's text model, whole: `logit_scale` is of the contrastive loss and no part of the encoder."""
    shapes: Shapes = {"logit_scale": (), "positional_embedding": (77, 1280), "text_projection": (1280, 1280)}
    shapes |= _pair("token_embedding", 49408, 1280, bias=False) | _pair("ln_final", 1280)
    for path in (f"transformer.resblocks.{i}" for i in range(32)):
        shapes |= {f"{path}.attn.in_proj_weight": (3840, 1280), f"{path}.attn.in_proj_bias": (3840,)}
        shapes |= _pair(f"{path}.attn.out_proj", 1280, 1280)
        shapes |= _pair(f"{path}.ln_1", 1280) | _pair(f"{path}.ln_2", 1280)
        shapes |= _pair(f"{path}.mlp.c_fc", 5120, 1280) | _pair(f"{path}.mlp.c_proj", 1280, 5120)
    return shapes


def published(kind: str) -> Shapes:
    """The weights of v1-5-pruned-emaonly.safetensors or sd_xl_base_1.0.safetensors."""

    def prefixed() -> Iterator[tuple[str, Shapes]]:
        yield "model.diffusion_model.", unet(SD15 if kind == "sd" else SDXL)
        yield "first_stage_model.", vae()
        if kind == "sd":
            yield "cond_stage_model.transformer.", clip_l()
        else:
            yield "conditioner.embedders.0.transformer.", clip_l()
            yield "conditioner.embedders.1.model.", open_clip_g()

    return {prefix + name: shape for prefix, shapes in prefixed() for name, shape in shapes.items()}
