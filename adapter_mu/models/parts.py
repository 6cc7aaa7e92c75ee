"""Parts of a model that other tools saved: a UNet or a text encoder, whole or only the tensors that were changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from adapter_mu.errors import ModelError
from adapter_mu.models.files import refuse_pickle, tensor_names
from adapter_mu.models.load import LoadedModel

PREFIX = "text_model."  # some versions of transformers write it before the names of a text encoder, some do not


def part_files(path: Path, part: str) -> list[Path]:
    """The .safetensors files of a part: the file itself, or those of a folder (or of its sub-folder named `part`).

    Raises:
        ModelError: nothing there, or pickles only; the sentence says how to convert them.
    """
    if path.is_file():
        refuse_pickle(path)
        return [path]
    folder = path / part if (path / part).is_dir() else path
    if not folder.is_dir():
        raise ModelError(f"there is no file or folder '{path}': name a .safetensors file or a diffusers sub-folder.")
    files = sorted(folder.glob("*.safetensors"))
    for other in sorted(folder.iterdir()) if not files else []:
        refuse_pickle(other)
    if not files:
        raise ModelError(f"'{folder}' holds no .safetensors file: name the folder or the file with the {part}.")
    return [file for file in files if "." not in file.stem] or files  # a variant (model.fp16) repeats what is there


def check_part(model: LoadedModel, part: str, path: Path) -> None:
    """Compare names and shapes with the model's own part; reads headers only.

    Raises:
        ModelError: the model has no such part, or the file holds tensors that do not belong there.
    """
    own = _named(_module(model, part))
    for file in part_files(path, part):
        names = tensor_names(file)
        with safe_open(file, framework="pt") as stored:
            for name in names:
                _fitting(file, part, own, name, tuple(stored.get_slice(name).get_shape()))


def with_parts(model: LoadedModel, parts: Mapping[str, Path]) -> LoadedModel:
    """`model` with the tensors of `parts` in place of its own; it is not changed, other parts are shared.

    Args:
        model: of the same architecture.
        parts: files or folders by the name of the part, "unet", "text_encoder" or "text_encoder_2"; a file may hold a
            few of its tensors only, as UCE's and ESD's own code writes them.

    Raises:
        ModelError: as for `check_part`.
    """
    pipeline = copy.copy(model.pipeline)
    for part, path in parts.items():
        check_part(model, part, path)
        module = copy.deepcopy(_module(model, part))
        _fill(module, part, path)
        pipeline.register_modules(**{part: module})
    name = f"{model.name} with {' and '.join(f'{part} {path.name}' for part, path in parts.items())}"
    return replace(model, pipeline=pipeline, name=name, source=str(next(iter(parts.values())).absolute()))


@torch.no_grad()
def _fill(module: nn.Module, part: str, path: Path) -> None:
    own = _named(module)
    for file, name, tensor in _tensors(part_files(path, part)):
        if (place := _fitting(file, part, own, name, tuple(tensor.shape))) is not None:
            place.copy_(tensor)


def _tensors(files: list[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():
                yield file, name, stored.get_tensor(name)


def _module(model: LoadedModel, part: str) -> nn.Module:
    found: nn.Module | None = getattr(model.pipeline, part, None)
    if found is None:
        raise ModelError(f"'{model.name}' has no {part} that could be replaced: leave it out.")
    return found


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): tensor for name, tensor in module.state_dict().items()}


def _fitting(file: Path, part: str, own: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor | None:
    """Where a stored tensor belongs; None for the position numbers that older versions saved with a text encoder."""
    if name.endswith("position_ids"):
        return None
    place = own.get(name.removeprefix(PREFIX))
    if place is None:
        raise ModelError(
            f"'{file}' holds '{name}', which the base's {part} does not have: name a {part} in diffusers' layout"
            " (a whole single-file checkpoint goes under `checkpoint`)."
        )
    if tuple(place.shape) != shape:
        raise ModelError(
            f"'{file}' has '{name}' of shape {shape}, the base's {part} of {tuple(place.shape)}: it belongs to another"
            " architecture."
        )
    return place
