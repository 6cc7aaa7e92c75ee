"""Networks whose features FID and KID compare."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_mu.errors import ModelError
from adapter_mu.evaluate.clip import Clip, best_device
from adapter_mu.recipe import Evaluate, Quality
from adapter_mu.shapes.detector import load_shapes_detector

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity keeps it in PyTorch's own cache
FETCH_INCEPTION = "from torchmetrics.image.fid import FrechetInceptionDistance as F; F(2048)"


@dataclass(frozen=True)
class Features:
    """A network: its name as results give it, how many numbers it makes of a picture, and how."""

    name: str
    width: int
    of: Callable[[Tensor], Tensor]
    """(N, width) features of pictures (N, 3, H, W) in [0, 1]."""


def uses_shapes(evaluate: Evaluate) -> bool:
    """Whether the shapes world's own networks stand for CLIP, Inception and LPIPS."""
    choice = evaluate.detector if isinstance(evaluate.detector, str) else evaluate.detector["name"]
    assert evaluate.quality is not None
    return evaluate.quality.features == "shapes" or (evaluate.quality.features == "auto" and choice == "shapes")


def feature_network(evaluate: Evaluate) -> Features:
    """The network that `quality.features` means.

    Raises:
        ModelError: it, or its weights, are not on this machine.
    """
    assert evaluate.quality is not None
    if uses_shapes(evaluate):
        return _shapes()
    wanted = evaluate.quality.features
    if wanted == "inception" or (wanted == "auto" and _has_inception()):
        return _inception()
    return _clip(evaluate.quality)


def _shapes() -> Features:
    """Scaled to a mean square of 1 a picture: KID's kernel, a cube, is made for features of about that size."""
    body, width = load_shapes_detector().body, 96

    @torch.no_grad()
    def of(pictures: Tensor) -> Tensor:
        features = torch.cat([body(part.float() * 2 - 1) for part in pictures.split(256)])
        return F.normalize(features, dim=1) * width**0.5

    return Features("the shapes detector's 96 features, scaled to a mean square of 1", width, of)


def _clip(quality: Quality) -> Features:
    clip = Clip(quality.clip, "The CLIP of the quality scores (`evaluate.quality.clip`)")
    return Features(f"image features of CLIP {quality.clip}", clip.width, clip.features)


def _has_inception() -> bool:
    """Both packages, and weights that need not be fetched."""
    return _installed() and _inception_file().is_file()


def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torchvision", "torch_fidelity", "torchmetrics"))


def _inception_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION


def _inception() -> Features:
    """FID's own Inception v3 as torchmetrics wraps torch-fidelity's, last pooling layer."""
    if not _installed():
        raise ModelError(
            "Inception features need torchvision, torch-fidelity and torchmetrics; install them with "
            "`pip install torchvision torch-fidelity torchmetrics` (on a GPU machine: docs/evaluation.md says why), "
            "or set `evaluate.quality.features: clip`."
        )
    if not _inception_file().is_file():
        raise ModelError(
            f'Inception\'s weights are not on this machine; bring them with: python -c "{FETCH_INCEPTION}"'
        )
    return Features("Inception v3 (torch-fidelity, 2048 features, torchmetrics' resizing)", 2048, _inception_features)


@torch.no_grad()
def _inception_features(pictures: Tensor) -> Tensor:
    parts = (pictures * 255).round().byte().split(32)
    return torch.cat([_inception_network()(part.to(best_device())).float().cpu() for part in parts])


@functools.cache
def _inception_network() -> Any:
    from torchmetrics.image.fid import NoTrainInceptionV3

    return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).eval().to(best_device())
