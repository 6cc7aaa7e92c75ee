"""Merge an adapter into its base and save a diffusers folder that any diffusers opens."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from adapter_mu.errors import UserError
from adapter_mu.models import LoadedModel, with_unet
from adapter_mu.params import Adapter


@torch.no_grad()
def merge(model: LoadedModel, adapter: Adapter) -> LoadedModel:
    """The base with the adapter's weights in it: fp32 arithmetic, one cast to the base's dtype at the end."""
    unet = copy.deepcopy(model.unet)
    for name, weight in adapter.materialize(adapter.parameters()).items():
        unet.get_parameter(name).copy_(weight)
    return with_unet(model, unet)


def refuse_existing(out: Path) -> None:
    """UserError when `out` exists: nothing is ever overwritten."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another output or delete it.")


def save_folder(model: LoadedModel, out: Path) -> Path:
    """Write a diffusers folder (safetensors) beside `out` and rename it once; UserError when `out` exists."""
    refuse_existing(out)
    staged = out.with_name(f".{out.name}.part")
    shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed while it wrote
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        model.pipeline.save_pretrained(staged, safe_serialization=True)
        _forget_paths(staged)
        staged.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"Writing {out} failed ({error}); free some space or choose another output.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return out


def _forget_paths(folder: Path) -> None:
    """Drop where the base lay on this machine: nobody's business, and the same merge makes the same bytes anywhere."""
    for path in [folder / "model_index.json", *folder.glob("*/config.json")]:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
