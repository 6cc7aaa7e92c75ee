"""A UNet that computes without holding its weights: every layer reads them when it is called and lets them go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_mu.errors import ModelError
from adapter_mu.export.architecture import empty_model
from adapter_mu.export.assemble import Scaled, as_trained, edits_of
from adapter_mu.export.checkpoint import Checkpoint, weight_files
from adapter_mu.export.layers import Delta, Factors
from adapter_mu.export.single_file import PREFIXES
from adapter_mu.export.streaming import Lazy, StoredFile


def streamed_unet(folder: Path, tensors: Mapping[str, Lazy], adapters: Scaled = ()) -> Any:
    """The UNet of a diffusers folder's configuration over weights that stay on disk, computing in fp32.

    Args:
        folder: describes the architecture.
        tensors: by diffusers' names.
        adapters: run live beside the layers, factor after factor, as peft does; a dense delta joins its weight.
    """
    unet = empty_model(folder, "unet").eval().requires_grad_(False)
    for path, layer in unet.named_modules():
        own = {name: f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False)}
        if own:
            layer.register_forward_pre_hook(_reader(own, tensors, adapters))
            layer.register_forward_hook(_live(f"{path}.weight", adapters))
    return unet


def _reader(own: Mapping[str, str], tensors: Mapping[str, Lazy], adapters: Scaled) -> Any:
    def read(layer: nn.Module, _: Any) -> None:
        for name, full in own.items():
            weight, edits = tensors[full].make(), edits_of(adapters, "unet", full)
            weight = as_trained(weight, adapters) if edits else weight.to(torch.float32)
            for edit, scale in edits:
                if isinstance(edit, Delta):
                    weight = weight + edit.delta(scale)
            layer._parameters[name] = nn.Parameter(weight, requires_grad=False)

    return read


def _live(weight: str, adapters: Scaled) -> Any:
    def finish(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for edit, scale in edits_of(adapters, "unet", weight):
            if isinstance(edit, Factors):
                output = output + scale * edit.scale * _beside(layer, edit, inputs[0])
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None:
                layer._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        return output

    return finish


def _beside(layer: nn.Module, edit: Factors, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(F.conv2d(x, edit.down, None, layer.stride, layer.padding, layer.dilation), edit.up)
    return F.linear(F.linear(x, edit.down.flatten(1)), edit.up.flatten(1))


def opened_by_diffusers(path: Path, base: Checkpoint) -> dict[str, Lazy]:
    """The UNet's tensors in a written model by the names that *diffusers* finds them under, unread.

    Args:
        path: a diffusers folder or a file in the original layout.
        base: what it was made from; tells the architecture.

    Raises:
        ModelError: diffusers would miss a tensor.
    """
    if path.is_dir():
        files = [StoredFile(file) for file in weight_files(path / "unet", None)]
        found = {name: tensor for file in files for name, tensor in file.tensors().items()}
    else:
        found = _converted(StoredFile(path).tensors(), base.folder)
    for name, parameter in empty_model(base.folder, "unet").named_parameters():
        if name not in found or found[name].shape != tuple(parameter.shape):
            raise ModelError(
                f"'{path}' was written wrongly: diffusers finds no unet {name!r} of the right shape in it."
            )
    return found


def _converted(tensors: Mapping[str, Lazy], folder: Path) -> dict[str, Lazy]:
    """Follow empty stand-ins through diffusers' own conversion: it moves them, so that we see what comes where."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = PREFIXES["sd"]["unet"]
    stand_ins = {k: torch.empty(t.shape, device="meta") for k, t in tensors.items() if k.startswith(prefix)}
    origins = {id(stand_in): key for key, stand_in in stand_ins.items()}
    config = UNet2DConditionModel.load_config(folder / "unet")
    moved = convert_ldm_unet_checkpoint(dict(stand_ins), config)
    return {name: tensors[origins[id(stand_in)]] for name, stand_in in moved.items()}
