"""Figure 6: how the gradients on the concept and on a related concept lie to each other as meta-unlearning goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adapter_mu.models import load_model
from adapter_mu.params import select
from adapter_mu.recipe import Recipe
from adapter_mu.reproduce.figures import save_figure
from adapter_mu.reproduce.paper import META
from adapter_mu.reproduce.runs import World, variant

STEPS = 100
KEY = "forget_related_cosine"


def figure6(world: World) -> str:
    """Train Meta-UCE for 100 steps in the first cross-attention layer alone, as the paper does, and plot the cosines.

    Returns:
        The regression's slope with its standard error, and where the figure lies.
    """
    recipe = world.recipe("uce")
    changes = {
        "train": {"steps": STEPS},
        "adapter": {"kind": "dense", "subset": first_cross_attention(recipe)},
        "meta": {"log_conflict": True},
        "attacks": None,
    }
    folder = world.run(variant(recipe, changes), "uce_first-layer")
    values = cosines(folder / f"training_{META}.jsonl")
    path = world.folder / "figure6.png"
    slope, error = plot(values, path)
    return (
        f"cosine between the gradients on the concept and on related pictures, {len(values)} steps of Meta-UCE:\n"
        f"slope {slope:+.5f} a step (standard error {error:.5f}); first ten {np.mean(values[:10]):+.3f}, "
        f"last ten {np.mean(values[-10:]):+.3f}. Paper: falling.\n\n{path}"
    )


def first_cross_attention(recipe: Recipe) -> str:
    """The subset of all weights of the UNet's first cross-attention, as a regex."""
    names = select(load_model(recipe.base.model, config=recipe.base.config).unet, "cross_attention")
    return rf"^{re.escape(next(iter(names)).partition('.attn2.')[0])}\.attn2\."


def cosines(log: Path) -> list[float]:
    """The logged cosine of every step."""
    return [json.loads(line)[KEY] for line in log.read_text(encoding="utf-8").splitlines()]


def regression(values: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and the slope's standard error of the least-squares line through (step, value)."""
    steps = np.arange(len(values))
    (slope, intercept), covariance = np.polyfit(steps, values, 1, cov=True)
    return float(slope), float(intercept), float(np.sqrt(covariance[0, 0]))


def plot(values: Sequence[float], path: Path) -> tuple[float, float]:
    """Save the figure; the slope and its standard error."""
    slope, intercept, error = regression(values)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(values, lw=0.7, alpha=0.6, label="each step")
    axis.axline((0, intercept), slope=slope, color="C1", label=f"regression, slope {slope:+.5f}")
    axis.set_xlabel("step of meta-unlearning")
    axis.set_ylabel("cosine of the two gradients")
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    save_figure(figure, path)
    return slope, error
