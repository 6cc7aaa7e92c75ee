"""Merged weights become a diffusers folder or a checkpoint in the original single-file layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.single_file import POSITION_IDS, original_layout
from adapter_mu.export.streaming import Lazy, write_streamed
from adapter_mu.models.files import PICKLES, WEIGHTED

Components = Mapping[str, Mapping[str, Lazy]]
Progress = Callable[[int], object]
_WEIGHTS = (*PICKLES, ".safetensors", ".msgpack", ".h5", ".onnx", ".onnx_data", ".index.json")
# Loaders that ask for EMA weights would find the concept in the untouched copy.
_EMA = "model_ema."


def write_folder(
    base: Checkpoint, components: Components, folder: Path, metadata: Mapping[str, str], progress: Progress
) -> None:
    """A diffusers folder: the base's configuration and tokenizers, and one safetensors file a model."""
    folder.mkdir()
    index = json.loads((base.folder / "model_index.json").read_text(encoding="utf-8"))
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] is None:
            continue
        if not (base.folder / name).is_dir():
            index[name] = [None, None]  # a safety checker, for one, is not downloaded with a base
            continue
        _copy_part(base.folder / name, folder / name, weights=name not in WEIGHTED)
    if index.get("safety_checker", [None])[0] is None and "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    _write_json(folder / "model_index.json", index)
    for component, tensors in components.items():
        stored = base.stored_names.get(component) or {name: _folder_name(component, name) for name in tensors}
        file = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        named = {stored[name]: tensor for name, tensor in tensors.items()}
        write_streamed(folder / component / f"{file}.safetensors", named, metadata, progress)
        _tell_dtype(folder / component / "config.json", tensors)


def write_single_file(
    base: Checkpoint, components: Components, path: Path, metadata: Mapping[str, str], progress: Progress
) -> None:
    """A checkpoint in the original layout, as ComfyUI, A1111, kohya and `from_single_file` read it."""
    write_streamed(path, single_file_tensors(base, components), metadata, progress)


def single_file_tensors(base: Checkpoint, components: Components) -> dict[str, Lazy]:
    """The tensors of the original layout; what a single-file base holds besides is kept, EMA copies are not."""
    result = {key: tensor for key, tensor in base.extra.items() if not key.startswith(_EMA)}
    for component, tensors in components.items():
        if component == "text_encoder_2":  # OpenCLIP keeps no position ids
            tensors = {name: tensor for name, tensor in tensors.items() if name != POSITION_IDS}
        if component == "text_encoder":
            tensors = {POSITION_IDS: _position_ids(tensors), **tensors}
        for entry in original_layout(base.kind, component, tensors):
            parts = [tensors[name] for name in entry.parts]
            shape = entry.shape([part.shape for part in parts])
            result[entry.key] = Lazy(
                parts[0].dtype,
                shape,
                lambda entry=entry, parts=parts: entry.join([part.make() for part in parts]),  # type: ignore[misc]
            )
    return result


def _position_ids(tensors: Mapping[str, Lazy]) -> Lazy:
    length = tensors["embeddings.position_embedding.weight"].shape[0]
    return Lazy(torch.int64, (1, length), lambda: torch.arange(length)[None])


def _folder_name(component: str, name: str) -> str:
    """Where diffusers folders of every age keep the canonical name."""
    plain = not component.startswith("text_encoder") or name.startswith("text_projection")
    return name if plain else f"text_model.{name}"


def _copy_part(source: Path, target: Path, *, weights: bool) -> None:
    """Configuration and vocabulary; weights only where asked for, and never pickles."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        heavy = file.name.endswith(_WEIGHTS)
        if file.is_file() and (not heavy or (weights and file.suffix == ".safetensors")):
            if file.name == "config.json":
                _write_json(target / file.name, json.loads(file.read_text(encoding="utf-8")))
            else:
                shutil.copyfile(file, target / file.name)


def _tell_dtype(config: Path, tensors: Mapping[str, Lazy]) -> None:
    """Transformers reads the dtype to load in from the configuration, not from the file."""
    content = json.loads(config.read_text(encoding="utf-8"))
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point)
    _write_json(config, content | {key: str(dtype)[6:] for key in ("dtype", "torch_dtype") if key in content})


def _write_json(path: Path, content: dict[str, object]) -> None:
    """Without where the base lay on this machine: nobody's business, and the same merge makes the same bytes."""
    content = {key: value for key, value in content.items() if key != "_name_or_path"}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
