"""How far two pictures are apart to an eye that is a network."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapter_mu.errors import ModelError
from adapter_mu.evaluate.clip import best_device
from adapter_mu.evaluate.quality.features import uses_shapes
from adapter_mu.recipe import Evaluate
from adapter_mu.shapes.detector import load_shapes_detector

ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision keeps it in PyTorch's own cache
FETCH_ALEXNET = "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"
SHAPES_CONVENTION = (
    "perceptual distance, not LPIPS: LPIPS's formula with equal weights on the shapes detector's four convolutions; "
    "to the base's picture of the same prompt and noise"
)


@dataclass(frozen=True)
class Distance:
    """A distance: its name as results give it, and one number a pair."""

    convention: str
    of: Callable[[Tensor, Tensor], Tensor]
    """(N,) distances of pictures (N, 3, H, W) in [0, 1]."""


def perceptual_distance(evaluate: Evaluate) -> Distance:
    """LPIPS, or its like in the shapes world.

    Raises:
        ModelError: torchvision, which LPIPS is built on, or its weights are not on this machine.
    """
    if uses_shapes(evaluate):
        body = load_shapes_detector().body
        return Distance(SHAPES_CONVENTION, lambda one, other: shapes_distance(body, one, other))
    if any(importlib.util.find_spec(name) is None for name in ("torchvision", "torchmetrics")):
        raise ModelError(
            "LPIPS needs torchvision and torchmetrics; install them with `pip install torchvision torchmetrics` (on a "
            "GPU machine: docs/evaluation.md says why), or leave lpips out of `evaluate.quality`."
        )
    if not (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file():
        raise ModelError(
            f'AlexNet\'s weights for LPIPS are not on this machine; bring them: python -c "{FETCH_ALEXNET}"'
        )
    return Distance("LPIPS (AlexNet, torchmetrics) to the base's picture of the same prompt and noise", _lpips)


@torch.no_grad()
def _lpips(one: Tensor, other: Tensor) -> Tensor:
    pairs, metric = zip(one.split(16), other.split(16), strict=True), _lpips_metric()
    return torch.cat([metric(a.to(best_device()), b.to(best_device())).reshape(-1).cpu() for a, b in pairs])


@functools.cache
def _lpips_metric() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=True)
    return metric.to(best_device())


@torch.no_grad()
def shapes_distance(body: nn.Sequential, one: Tensor, other: Tensor) -> Tensor:
    """Zhang et al. 2018, eq. 1, without learned weights: squared differences of unit feature vectors.

    Averaged over places and layers, summed over channels; (N,).
    """
    total = torch.zeros(len(one))
    one, other = one.float() * 2 - 1, other.float() * 2 - 1
    blocks = [part for part in body if isinstance(part, nn.Sequential)]
    for block in blocks:
        one, other = block(one), block(other)
        total += (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean((1, 2)) / len(blocks)
    return total
