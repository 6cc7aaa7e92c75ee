"""Merge an adapter into its base and save a diffusers folder that any diffusers opens."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import torch

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


def save_folder(model: LoadedModel, out: Path) -> Path:
    """Write a diffusers folder (safetensors) beside `out` and rename it once; UserError when `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another output or delete it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        model.pipeline.save_pretrained(staged, safe_serialization=True)
        staged.rename(out)
    except OSError as error:
        raise UserError(f"Writing {out} failed ({error}); free some space or choose another output.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return out
