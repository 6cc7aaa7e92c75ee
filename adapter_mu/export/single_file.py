"""Names and forms of the original single-file layout (CompVis LDM, Stability's SDXL) for diffusers' tensors.

Names of diffusers are *canonical* here: attention of the VAE as `to_q`, `to_k`, `to_v`, `to_out.0`, text encoders
without the prefix `text_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adapter_mu.export.unet_names import unet_names
from adapter_mu.models.files import Kind

PREFIXES: dict[Kind, dict[str, str]] = {
    "sd": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.text_model.",
    },
    "sdxl": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
POSITION_IDS = "embeddings.position_ids"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE = {
    "conv_norm_out.": "norm_out.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "conv_shortcut.": "nin_shortcut.",
    "downsamplers.0.": "downsample.",
    "upsamplers.0.": "upsample.",
    ".resnets.": ".block.",
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.": "token_embedding.",
    "final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
    "self_attn.q_proj.": "attn.in_proj_",
}


@dataclass(frozen=True)
class Original:
    """One tensor of the original layout and the canonical tensors that it holds."""

    key: str
    """With its prefix, as in the file."""
    parts: tuple[str, ...]
    """Canonical names in the component; several are stacked along the first dimension."""
    form: Literal["same", "transposed", "convolution"] = "same"
    """`convolution`: a linear weight written as a 1x1 kernel."""

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Shape in the original layout, of parts of these shapes."""
        if self.form == "transposed":
            return shapes[0][::-1]
        if self.form == "convolution":
            return (*shapes[0][:2], 1, 1)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor of the original layout."""
        if self.form == "transposed":
            return parts[0].T.contiguous()
        if self.form == "convolution":
            return parts[0].reshape(*parts[0].shape[:2], 1, 1)
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]

    def part(self, tensor: Tensor, index: int) -> Tensor:
        """The canonical tensor `parts[index]` in a tensor of the original layout."""
        if self.form == "transposed":
            return tensor.T.contiguous()
        if self.form == "convolution":
            return tensor.reshape(tensor.shape[:2])
        return tensor.chunk(len(self.parts))[index].contiguous() if len(self.parts) > 1 else tensor


def canonical(component: str, name: str) -> str:
    """Canonical name of a tensor as it is stored in a diffusers folder of any age."""
    if component.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if component == "vae" and ".attentions." in name:
        *path, module, leaf = name.split(".")
        return ".".join([*path, _OLD_ATTENTION.get(module, module), leaf])
    return name


def original_layout(kind: Kind, component: str, names: Iterable[str]) -> list[Original]:
    """Where the original layout keeps a component's tensors; ModelError for a name it has no place for."""
    names, prefix = list(names), PREFIXES[kind][component]
    if component == "unet":
        return [Original(prefix + new, (old,)) for old, new in unet_names(names).items()]
    if component == "vae":
        return [_vae(prefix, name, names) for name in names]
    if component == "text_encoder_2":
        return [entry for name in names if (entry := _open_clip(prefix, name))]
    return [Original(prefix + name, (name,)) for name in names]


def _vae(prefix: str, name: str, names: Sequence[str]) -> Original:
    linear = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
    key = _renamed(name, _VAE).replace("down_blocks.", "down.")
    if found := re.search(r"up_blocks\.(\d+)\.", key):  # the original counts the decoder's levels from the image
        top = max(int(level) for other in names for level in re.findall(r"up_blocks\.(\d+)\.", other))
        key = key.replace(found[0], f"up.{top - int(found[1])}.")
    return Original(prefix + key, (name,), "convolution" if linear else "same")


def _open_clip(prefix: str, name: str) -> Original | None:
    if ".k_proj." in name or ".v_proj." in name:
        return None  # stacked under the query's name
    parts = tuple(name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv") if ".q_proj." in name else (name,)
    form: Literal["same", "transposed"] = "transposed" if name == "text_projection.weight" else "same"
    return Original(prefix + _renamed(name, _OPEN_CLIP), parts, form)


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name
