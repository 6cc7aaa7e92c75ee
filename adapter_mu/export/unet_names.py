"""Names of the original UNet (`openaimodel`) for diffusers' tensors.

Indices of blocks are counted off from the names themselves, so that any depth works.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapter_mu.errors import ModelError

_BLOCK = re.compile(r"(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+\.")
_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def unet_names(names: Sequence[str]) -> dict[str, str]:
    """The original UNet's name of every tensor, without `model.diffusion_model.`.

    Raises:
        ModelError: a name that the original has no place for.
    """
    blocks = _unet_blocks({found[0] for name in names if (found := _BLOCK.match(name))})
    result = {}
    for name in names:
        block = _BLOCK.match(name)
        end = next((end for end in _UNET_ENDS if name.startswith(end)), None)
        if block:
            result[name] = blocks[block[0]] + _within_block(block[0], name[block.end() :])
        elif end:
            result[name] = _UNET_ENDS[end] + name.removeprefix(end)
        else:
            raise ModelError(f"the original layout of SD 1.x and SDXL has no place for the UNet's {name!r}")
    return result


def _within_block(block: str, rest: str) -> str:
    if ".resnets." in block:
        module, _, leaf = rest.partition(".")
        return _UNET_RESNET[f"{module}."] + leaf
    return rest.replace("conv.", "op.") if ".downsamplers." in block else rest


def _unet_blocks(present: set[str]) -> dict[str, str]:
    """Prefix of every block in the original UNet, whose blocks are counted through all levels."""
    blocks = {"mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1."}
    blocks["mid_block.resnets.1."] = "middle_block.2."
    for side, sampler, original, number in (("down", "down", "input", 1), ("up", "up", "output", 0)):
        level = 0
        while f"{side}_blocks.{level}.resnets.0." in present:
            here, layer, places = f"{side}_blocks.{level}.", 0, 0
            while f"{here}resnets.{layer}." in present:
                blocks[f"{here}resnets.{layer}."] = f"{original}_blocks.{number}.0."
                blocks[f"{here}attentions.{layer}."] = f"{original}_blocks.{number}.1."
                places = 1 + (f"{here}attentions.{layer}." in present)
                layer, number = layer + 1, number + 1
            if f"{here}{sampler}samplers.0." in present and side == "down":
                blocks[f"{here}downsamplers.0."] = f"input_blocks.{number}.0."
                number += 1
            else:  # an upsampler belongs to the level's last block
                blocks[f"{here}upsamplers.0."] = f"output_blocks.{number - 1}.{places}."
            level += 1
    return blocks
