"""FID and KID of features that are already there, computed by torchmetrics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.errors import ModelError
from adapter_mu.evaluate.statistics import Interval

SUBSETS, LARGEST_SUBSET = 100, 1000  # torchmetrics' and torch-fidelity's defaults


def fid(features: Tensor, reference: Tensor) -> float:
    """Frechet distance (Heusel et al. 2017) of two sets of features (N, D) and (M, D)."""
    metric = _metrics("fid").FrechetInceptionDistance(feature=_ready(features.shape[1]))
    return float(_filled(metric, features, reference).compute())


def kid(features: Tensor, reference: Tensor, seed: int = 0) -> Interval:
    """Kernel distance (Binkowski et al. 2018), the mean over random subsets, with one standard deviation of them.

    Subsets have at most half of the smaller set, so that they differ.
    """
    size = subset_size(features, reference)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # it says that it keeps the features
        torch.manual_seed(seed)  # torchmetrics draws the subsets from torch's global generator
        metric = _metrics("kid").KernelInceptionDistance(feature=_ready(1), subsets=SUBSETS, subset_size=size)
        mean, spread = (float(number) for number in _filled(metric, features, reference).compute())
    return Interval(mean, mean - spread, mean + spread)


def subset_size(features: Tensor, reference: Tensor) -> int:
    """How many pictures a subset of KID takes of each set."""
    return max(2, min(LARGEST_SUBSET, len(features) // 2, len(reference) // 2))


def check_torchmetrics() -> None:
    """ModelError when it is not installed."""
    _metrics("fid")


def _ready(width: int) -> nn.Module:
    """A network that is handed the features which torchmetrics asks it for."""
    network = nn.Identity()
    network.num_features = width  # type: ignore[assignment]
    return network


def _filled(metric: Any, features: Tensor, reference: Tensor) -> Any:
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return metric


def _metrics(name: str) -> Any:
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.kid
    except ImportError:
        raise ModelError("FID and KID need torchmetrics; bring it with: pip install 'adapter-mu[eval]'") from None
    return getattr(torchmetrics.image, name)
