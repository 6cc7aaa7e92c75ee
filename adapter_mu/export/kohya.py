"""LoRA files as kohya's sd-scripts name them, which ComfyUI, A1111 and diffusers read; dense deltas as `.diff` keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.layers import Delta, Edit, Factors
from adapter_mu.export.unet_names import unet_names
from adapter_mu.models.files import Kind

_PREFIXES: dict[Kind, dict[str, str]] = {
    "sd": {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
    "sdxl": {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_text_model_",
        "text_encoder_2": "lora_te2_text_model_",
    },
}
_DIFFS = {"weight": "diff", "bias": "diff_b"}


def kohya_names(
    kind: Kind, component: str, parameters: Iterable[str], *, original: bool | None = None
) -> dict[str, str]:
    """Kohya's name of every layer, by layer.

    SD 1.x is named after diffusers, the UNet of SDXL after the original layout (`lora_unet_input_blocks_4_1_...`).

    Args:
        kind: architecture.
        component: "unet", "text_encoder" or "text_encoder_2".
        parameters: *all* parameter names of the component, which the blocks are counted off from.
        original: whether the UNet is named after the original layout; None as the architecture has it.
    """
    parameters, prefix = list(parameters), _PREFIXES[kind][component]
    if component == "unet" and (kind == "sdxl" if original is None else original):
        renamed = unet_names(parameters)
    else:
        renamed = {name: name for name in parameters}
    return {_layer(old): prefix + _layer(new).replace(".", "_") for old, new in renamed.items()}


def kohya_tensors(components: Mapping[str, Mapping[str, Edit]], base: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a kohya file, fp32: `lora_down`, `lora_up`, `alpha`; a dense delta as `diff` or `diff_b`.

    Every pair is padded with zeros to the largest rank, which changes nothing: tools take one rank and one alpha for
    granted, and diffusers misplaces alphas that differ.
    """
    factors = [edit for edits in components.values() for edit in edits.values() if isinstance(edit, Factors)]
    rank = max((edit.rank for edit in factors), default=0)
    tensors: dict[str, Tensor] = {}
    for component, edits in components.items():
        names = kohya_names(base.kind, component, base.components[component])
        for parameter, edit in edits.items():
            name = names[_layer(parameter)]
            if isinstance(edit, Delta):
                tensors[f"{name}.{_DIFFS[parameter.rpartition('.')[2]]}"] = edit.delta()
                continue
            padded = pad(edit, rank)
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = padded.down, padded.up
            tensors[f"{name}.alpha"] = torch.tensor(padded.scale * rank)
    return tensors


def pad(edit: Factors, rank: int) -> Factors:
    """The same edit with factors of a larger rank."""
    if edit.rank == rank:
        return edit
    down = edit.down.new_zeros(rank, *edit.down.shape[1:])
    up = edit.up.new_zeros(edit.up.shape[0], rank, *edit.up.shape[2:])
    down[: edit.rank], up[:, : edit.rank] = edit.down, edit.up
    return Factors(down, up, edit.scale)


def read_kohya(tensors: Mapping[str, Tensor], base: Checkpoint) -> tuple[str, dict[str, dict[str, Edit]]]:
    """Kind and edits of a kohya file, named after diffusers or the original layout.

    Raises:
        KeyError: a layer that the base does not have, or a pair without its partner.
        ValueError: another kind of file than LoRA and `.diff`.
    """
    places = _places(base)
    components: dict[str, dict[str, Edit]] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".")
        component, path = places[layer]
        edits = components.setdefault(component, {})
        if rest == "lora_down.weight":
            up, rank = tensors[f"{layer}.lora_up.weight"].float(), tensor.shape[0]
            alpha = float(tensors.get(f"{layer}.alpha", torch.tensor(rank)))
            edits[f"{path}.weight"] = Factors(tensor.float(), up, alpha / rank)
        elif rest in _DIFFS.values():
            edits[f"{path}.{'weight' if rest == 'diff' else 'bias'}"] = Delta.of(tensor)
        elif rest not in ("lora_up.weight", "alpha"):
            raise ValueError(f"{name!r} belongs to no LoRA of Linear and Conv2d layers")
    dense = any(isinstance(edit, Delta) for edits in components.values() for edit in edits.values())
    return ("dense" if dense else "lora"), components


def _places(base: Checkpoint) -> dict[str, tuple[str, str]]:
    """Component and layer of every name that a kohya file may use."""
    places: dict[str, tuple[str, str]] = {}
    for component in (part for part in base.components if part in _PREFIXES[base.kind]):
        for original in (False, True):
            names = kohya_names(base.kind, component, base.components[component], original=original)
            places |= {name: (component, layer) for layer, name in names.items()}
    return places


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]
