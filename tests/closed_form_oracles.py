"""UCE and RECE as their equations stand, matrix by matrix, dense, in float64 NumPy; and what their tests share.

Nothing of ours but the embeddings goes into the solutions. Embeddings are rows (N, width); matrices act on columns,
(out, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tiny_pipelines import tiny_model

from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.scores import measure
from adapter_mu.export.merge import merge
from adapter_mu.models import LoadedModel, encode_prompts
from adapter_mu.params import LowRank
from adapter_mu.recipe import load_recipe

Array = NDArray[np.float64]
PRESERVED = ["circle", "a photo of a crescent", "red square"]
WORLDS = ["shapes-sd", "shapes-sdxl"]


@dataclass(frozen=True)
class Problem:
    """Erased rows, what each becomes, preserved rows, and a weight for every row of each kind."""

    erased: Array
    guides: Array
    preserved: Array
    erase_weight: float
    preserve_weight: float
    lamb: float


def rows_of(model: LoadedModel, prompts: Sequence[str]) -> Array:
    """Every row of every prompt, (N, T, width)."""
    return encode_prompts(model, prompts).embeds.double().numpy()


def matrices(model: LoadedModel) -> dict[str, Array]:
    """The weights of attn2.to_k and attn2.to_v by parameter name."""
    named = model.unet.named_parameters()
    return {
        name: weight.detach().double().numpy()
        for name, weight in named
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


def edited(current: Array, values_from: Array, problem: Problem) -> Array:
    """argmin over W of w_e sum |W c - V g|^2 + w_p sum |W r - V r|^2 + lamb |W - current|^2, by normal equations."""
    p = problem
    left, right = p.lamb * current, p.lamb * np.eye(current.shape[1])
    for row, guide in zip(p.erased, p.guides, strict=True):
        left = left + p.erase_weight * np.outer(values_from @ guide, row)
        right = right + p.erase_weight * np.outer(row, row)
    for row in p.preserved:
        left = left + p.preserve_weight * np.outer(values_from @ row, row)
        right = right + p.preserve_weight * np.outer(row, row)
    return left @ np.linalg.inv(right)


def adversarial(current: list[Array], original: list[Array], rows: Array, regulariser: float) -> Array:
    """The c' of every row by least squares on the stacked system [W~_i; sqrt(lambda) I] c' = [W*_i c; 0]."""
    width = rows.shape[1]
    system = np.concatenate([*current, np.sqrt(regulariser) * np.eye(width)])
    wanted = np.concatenate([*[weight @ rows.T for weight in original], np.zeros((width, len(rows)))])
    return np.linalg.lstsq(system, wanted, rcond=None)[0].T


def merged(adapter: LowRank) -> dict[str, Array]:
    """The edited weights by parameter name."""
    weights = adapter.materialize(adapter.parameters())
    return {name: weight.detach().double().numpy() for name, weight in weights.items()}


def in_float64(kind: str) -> LoadedModel:
    """A tiny random pipeline whose UNet is float64."""
    model = tiny_model(kind)
    model.unet.double()
    return model


def assert_equal(found: dict[str, Array], expected: dict[str, Array], tolerance: float) -> None:
    """The same names, and no number further off than `tolerance`."""
    assert found.keys() == expected.keys() and found
    for name, weight in expected.items():
        assert np.abs(found[name] - weight).max() < tolerance, name


def shares(model: LoadedModel, adapter: LowRank) -> tuple[float, float]:
    """Percent of 50 ring prompts that show one (the worse of guidance 1.5 and 4), of 50 benign ones (the lower)."""
    evaluate = load_recipe("shapes/demo", ["evaluate.concept.images=50", "evaluate.benign.images=50"]).evaluate
    assert evaluate
    edited_model, detector = merge(model, adapter), new_detector("shapes")
    rings, benign = (
        [measure(edited_model, spec, evaluate, detector, guidance).share for guidance in evaluate.guidance]
        for spec in (evaluate.concept, evaluate.benign)
    )
    return max(rings), min(benign)
