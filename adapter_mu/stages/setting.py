"""What all stages of a run share: its folder, the base, the detector, the sets, and headers on stderr."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from adapter_mu.data.cache import fingerprint
from adapter_mu.data.sets import LatentSet, picture_set
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.detectors import Detector, new_detector
from adapter_mu.models import LoadedModel, encoders_at, load_model, quantized_unet
from adapter_mu.recipe import Prompts, Recipe
from adapter_mu.simulate import Sets

BASE, BEFORE = "base", "none"  # results.json: the arm that is never trained, and the attack before any attack
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def say(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def numbered(total: int) -> Callable[[str], None]:
    """`say`, with "[1/total] " and so on before each text."""
    numbers = itertools.count(1)
    return lambda text: say(f"[{next(numbers)}/{total}] {text}")


def pick_device(name: str = "auto") -> str:
    """A device for "auto" (a GPU where PyTorch sees one), "cuda" or "cpu"; RecipeError for a GPU that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("`base.device` is cuda, but PyTorch sees no GPU here; use auto or cpu.")
    return name


def load_base(recipe: Recipe) -> LoadedModel:
    """The base model on the recipe's device; one that will be quantised waits on the CPU."""
    base = recipe.base
    return load_model(
        base.model,
        revision=base.revision,
        variant=base.variant,
        dtype=DTYPES[base.dtype],
        device="cpu" if base.quantize != "none" else pick_device(base.device),
        local_files_only=base.local_files_only or None,
        config=base.config,
    )


@dataclass
class Run:
    """A run's folder and what all its arms share; `announce` prints the header of a stage."""

    recipe: Recipe
    folder: Path
    model: LoadedModel
    base_hash: str
    detector: Detector | None
    announce: Callable[[str], None] = say

    @cached_property
    def sets(self) -> Sets:
        """The base's own pictures of the concept and of benign concepts, drawn once, then read from the cache."""
        data = self.recipe.data
        return Sets(*(self.drawn(spec) for spec in (data.forget, data.related, data.unrelated)))

    def draw_sets(self) -> None:
        """The stage that makes `sets`."""
        self.announce(f"{self.model.name} draws the forget and retain sets")
        _ = self.sets

    def drawn(self, spec: Prompts) -> LatentSet:
        """The set of `spec`, drawn by the base; with `keep_only_shown` only what shows its concept stays."""
        data = self.recipe.data
        judge = self.detector.found if self.detector and data.keep_only_shown else None
        with self.at_work() as (model, base_hash):
            return picture_set(model, base_hash, spec, data.sampler, self.folder / "cache", judge)

    @contextmanager
    def at_work(self) -> Iterator[tuple[LoadedModel, str]]:
        """The base as it draws and is trained on, quantised where the recipe says so, and what to call it in caches."""
        model = self.quantized
        if model is None:
            yield self.model, self.base_hash
            return
        with encoders_at(model, model.device):
            yield model, f"{self.base_hash} {self.recipe.base.quantize}"

    @cached_property
    def quantized(self) -> LoadedModel | None:
        """The base around a quantised copy of its UNet, made once; None where the recipe wants none."""
        kind = self.recipe.base.quantize
        if kind == "none":
            return None
        with quantized_unet(self.model, kind, torch.device(pick_device(self.recipe.base.device))) as model:
            return model

    def arm_folder(self, arm: str) -> Path:
        """Where the arm's adapter, merged model and scores lie."""
        return self.folder / "arms" / arm


def open_run(recipe: Recipe, folder: Path, model: LoadedModel | None = None) -> Run:
    """The run with its base (`model` where that is loaded already) and detector."""
    torch.set_flush_denormal(True)
    model = model or load_base(recipe)
    detector = new_detector(recipe.evaluate.detector) if recipe.evaluate else None
    return Run(recipe, folder, model, fingerprint(model.unet), detector)
