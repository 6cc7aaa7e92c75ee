"""A base model on disk as lazily read tensors under canonical names, whatever form it is stored in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter_mu.errors import ModelError
from adapter_mu.export.architecture import expected_shapes
from adapter_mu.export.single_file import Original, canonical, original_layout
from adapter_mu.export.streaming import Lazy, StoredFile
from adapter_mu.models.files import WEIGHTED, Kind, architecture_folder, file_kind, folder_kind, refuse_pickle
from adapter_mu.models.load import locate
from adapter_mu.params.files import check_payload

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Checkpoint:
    """A base: its weights, unread, and where its configuration and tokenizers lie."""

    kind: Kind
    name: str
    source: Path
    """The folder or file that was opened."""
    folder: Path
    """A diffusers folder of the same architecture: the source itself, or the `config` of a single file."""
    components: Mapping[str, Mapping[str, Lazy]]
    """Tensors by component and canonical name."""
    stored_names: Mapping[str, Mapping[str, str]]
    """The name in the source of every canonical name of a diffusers folder; empty for a single file."""
    extra: Mapping[str, Lazy]
    """What a single file holds besides the four models, under its own names."""
    metadata: Mapping[str, str]
    """Of the single file, else empty."""

    @property
    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self.source.is_file()


def open_checkpoint(
    source: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
    config: str | None = None,
) -> Checkpoint:
    """Open a built-in, a diffusers folder (any variant, sharded or not), a single file or a hub id; reads headers only.

    Args:
        source: as for `load_model`.
        revision: of a hub id.
        variant: such as "fp16"; None takes the plain weights, or the only variant that there is.
        local_files_only: never ask the hub.
        config: a diffusers folder of the architecture of a single file.

    Raises:
        ModelError: not found, a pickle, truncated, damaged, incomplete or of another architecture.
    """
    path = locate(source, revision, variant, local_files_only)
    return _open_file(path, config) if path.is_file() else _open_folder(path, Path(source).name, variant)


def _open_folder(path: Path, name: str, variant: str | None) -> Checkpoint:
    kind = folder_kind(path)
    components: dict[str, dict[str, Lazy]] = {}
    stored_names: dict[str, dict[str, str]] = {}
    for component in (part for part in WEIGHTED if (path / part).is_dir()):
        components[component], stored_names[component] = {}, {}
        for file in weight_files(path / component, variant):
            for stored, tensor in _checked(file).tensors().items():
                components[component][canonical(component, stored)] = tensor
                stored_names[component][canonical(component, stored)] = stored
        _complete(path, component, components[component], expected_shapes(path, component))
    return Checkpoint(kind, name, path, path, components, stored_names, {}, {})


def _open_file(path: Path, config: str | None) -> Checkpoint:
    kind = file_kind(path)
    folder, file = architecture_folder(path, kind, config), _checked(path)
    left = file.tensors()
    components: dict[str, dict[str, Lazy]] = {}
    for component in (part for part in WEIGHTED if (folder / part).is_dir()):
        shapes = expected_shapes(folder, component)
        components[component] = {}
        for entry in original_layout(kind, component, shapes):
            if entry.key in left:
                components[component] |= _parts(entry, left.pop(entry.key), shapes)
        _complete(path, component, components[component], shapes)
    return Checkpoint(kind, path.stem, path, folder, components, {}, left, file.metadata)


def _parts(entry: Original, stored: Lazy, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Lazy]:
    return {
        name: stored.then(stored.dtype, shapes[name], lambda tensor, index=index: entry.part(tensor, index))  # type: ignore[misc]
        for index, name in enumerate(entry.parts)
    }


def _checked(path: Path) -> StoredFile:
    file = StoredFile(path)
    check_payload(path, file.metadata)
    return file


def weight_files(part: Path, variant: str | None) -> list[Path]:
    """The .safetensors files of a component, shards in order; ModelError when there are none or several kinds."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(part.glob("*.safetensors")):
        suffix = _SHARD.sub("", file.stem).partition(".")[2]
        groups.setdefault(suffix, []).append(file)
    for wanted in (variant or "", ""):
        if wanted in groups:
            return groups[wanted]
    if len(groups) == 1 and variant is None:
        return next(iter(groups.values()))
    for file in sorted(part.iterdir()):
        refuse_pickle(file)
    found = ", ".join(sorted(groups)) or "none"
    raise ModelError(
        f"'{part}' has no single set of .safetensors weights (variants: {found}); name one with --variant."
    )


def _complete(path: Path, component: str, found: Mapping[str, Lazy], expected: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError unless every tensor that the configuration asks for is there in its shape."""
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"'{path}' lacks the tensor {name!r} of its {component}: fetch or export it again.")
        if _flat(found[name].shape) != _flat(shape):
            raise ModelError(
                f"'{path}' has {component} {name!r} of shape {found[name].shape} where its configuration asks for"
                f" {shape}: name a config of the same architecture."
            )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the ones of a 1x1 kernel: old VAE folders store attention as such."""
    return shape[:2] if shape[2:] == (1, 1) else shape
