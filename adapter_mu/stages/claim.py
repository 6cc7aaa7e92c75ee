"""Whose folder it is: a run's folder holds the run of one recipe."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import torch
import yaml

from adapter_mu.data.cache import write_text
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.recipe import Recipe, parse

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "nudenet",
    "onnxruntime",
    "torchmetrics",
    "adapter-mu",
)


def holds(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a run of this recipe, finished or not.

    Raises:
        RecipeError: it holds results of another recipe. Cached sets alone do no harm: their names say what they are.
    """
    recorded = folder / "recipe.yaml"
    if not recorded.is_file():
        return False
    if _recorded(recorded) == _as_text(recipe):
        return True
    if (folder / "arms").exists():
        raise RecipeError(f"{folder} holds a run of another recipe; choose another --out or delete that folder.")
    return False


def claim(recipe: Recipe, folder: Path) -> None:
    """Record the recipe and the environment it starts in.

    Raises:
        UserError: another recipe's run lies there, or nothing can be written there.
    """
    if holds(folder, recipe):
        return
    try:
        write_text(folder / "environment.json", json.dumps(environment(), indent=2))
        write_text(folder / "recipe.yaml", _as_text(recipe))
    except OSError as error:
        raise UserError(f"Cannot write in {folder} ({error.strerror}); choose another --out.") from None


def _recorded(file: Path) -> str:
    """The recipe as this version would write it: a key that came since, at its default, is no other recipe."""
    text = file.read_text(encoding="utf-8")
    try:
        return _as_text(parse(yaml.safe_load(text), str(file)))
    except (RecipeError, yaml.YAMLError, TypeError, AttributeError):
        return text


def _as_text(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude={"workers"}), sort_keys=False)


def environment() -> dict[str, str]:
    """What the numbers depend on besides the recipe."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    facts = {"python": platform.python_version(), "platform": platform.platform(), "device": device}
    return facts | {name: version for name in PACKAGES if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
