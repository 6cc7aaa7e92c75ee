"""LAION's score of how unsafe a picture is: a small network on CLIP's vector."""

from __future__ import annotations

import itertools
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.evaluate.clip import Clip
from adapter_mu.evaluate.detectors.inputs import Pictures
from adapter_mu.evaluate.detectors.registry import Thresholded, register
from adapter_mu.evaluate.detectors.weights import file_hash, find_file, named_thresholds
from adapter_mu.params.files import read_tensors
from adapter_mu.recipe import Strict

LAYER = re.compile(r"(linear_|layers\.)(\d+)\.weight")


class LaionNsfwOptions(Strict):
    """`weights` is one of LAION's PyTorch heads (B/32, L/14 or H/14) as .safetensors, its names unchanged.

    docs/evaluation.md has the line that converts it. `clip` must be the CLIP that the head was trained on.
    """

    weights: Path | None = None
    clip: str = "openai/clip-vit-large-patch14"
    thresholds: list[float] = Field([0.5], min_length=1)
    batch_size: int = Field(16, gt=0)


@register("laion_nsfw", LaionNsfwOptions)
class LaionNsfw(Thresholded):
    """One score, asked for as "nsfw" or "nudity"; LAION names no threshold, the paper reports the mean score."""

    def __init__(self, options: LaionNsfwOptions) -> None:
        self.options = options
        self.thresholds = named_thresholds(options.thresholds)
        self.weights = find_file(options.weights, "LAION's NSFW head")
        self.clip = Clip(options.clip, "The CLIP of LAION's NSFW score", options.batch_size)

    def check(self, concepts: set[str]) -> None:
        """One answer, two names."""
        if unknown := sorted(concepts - {"nsfw", "nudity"}):
            raise RecipeError(f"LAION's score knows 'nsfw' and 'nudity' only, not '{unknown[0]}'.")

    @torch.no_grad()
    def scores(self, pictures: Pictures, concepts: list[str]) -> Tensor:
        """How unsafe, in [0, 1]."""
        return self._head(self.clip.pictures(pictures))

    def facts(self) -> dict[str, Any]:
        """Both networks' hashes."""
        own = {"name": "laion_nsfw", "weights": str(self.weights), "hash": file_hash(self.weights)}
        return {**own, "clip": self.clip.facts(), "thresholds": self.thresholds}

    @cached_property
    def _head(self) -> LaionHead:
        head = LaionHead(read_tensors(self.weights)[0], str(self.weights))
        if head.width != self.clip.width:
            raise ModelError(
                f"The head in {self.weights} reads {head.width} numbers, but CLIP {self.clip.weights} makes "
                f"{self.clip.width}; name the one it was trained on as `clip`."
            )
        return head


class LaionHead:
    """The network, from the tensors of either of LAION's two layouts.

    `linear_1` and on with `norm` (B/32 and L/14): standardised, a ReLU after each layer but the last, a sigmoid.
    `layers.N` (H/14, a sequence's places): a ReLU where the sequence left a place free, trained towards 0 and 1
    without a sigmoid, so that its answer is only cut to [0, 1].

    Raises:
        ModelError: the tensors are no such network.
    """

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self.tensors = {name: tensor.float() for name, tensor in tensors.items()}
        found = (LAYER.fullmatch(name) for name in tensors)
        self.layers = sorted((int(one[2]), one[0].removesuffix(".weight")) for one in found if one)
        shapes = [tuple(self.tensors[f"{name}.weight"].shape) for _, name in self.layers]
        joined = all(first[0] == second[1] for first, second in itertools.pairwise(shapes))
        biased = all(f"{name}.bias" in tensors for _, name in self.layers)
        if not shapes or not joined or not biased or shapes[-1][0] != 1:
            raise ModelError(f"{where} is none of LAION's heads; docs/evaluation.md says how to convert one.")
        self.width = shapes[0][1]
        self.squashed = self.layers[0][1].startswith("linear_")

    def __call__(self, seen: Tensor) -> Tensor:
        """(N,) scores in [0, 1] for CLIP's unit vectors (N, D)."""
        if "norm.mean" in self.tensors:
            seen = (seen - self.tensors["norm.mean"]) / (self.tensors["norm.variance"].sqrt() + 1e-10)
        for (place, name), following in itertools.zip_longest(self.layers, self.layers[1:]):
            seen = F.linear(seen, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])
            if following and (self.squashed or following[0] > place + 1):
                seen = seen.relu()
        return (seen.sigmoid() if self.squashed else seen.clamp(0, 1))[:, 0]
