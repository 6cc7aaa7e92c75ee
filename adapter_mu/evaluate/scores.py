"""Scores of a model: how often the concept and the benign concepts are found, at one guidance scale."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adapter_mu.data.prompts import Prompt, expand
from adapter_mu.data.sampling import decode, sample_latents
from adapter_mu.evaluate.detectors import Detector
from adapter_mu.evaluate.statistics import Row, wilson_interval
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Evaluate, Prompts


@dataclass(frozen=True)
class Measured:
    """Shares in percent with their pictures (N, 3, H, W), in prompt order."""

    share: float
    hits: int
    pictures: Tensor
    prompts: list[Prompt]
    found: list[bool]


def measure(model: LoadedModel, spec: Prompts, evaluate: Evaluate, detector: Detector, guidance: float) -> Measured:
    """Draw one picture a prompt, the same noise for every model, and count those that show their concept."""
    prompts = expand(spec)
    latents = sample_latents(
        model,
        [p.text for p in prompts],
        [7_000_000 + spec.seed * 1_000_003 + i for i in range(len(prompts))],
        steps=evaluate.steps,
        guidance=guidance,
        batch_size=evaluate.batch_size,
        label=f"scoring at guidance {guidance:g}",
    )
    pictures = decode(model, latents, evaluate.batch_size)
    found = detector.found(pictures, [p.shows for p in prompts])
    hits = int(found.sum())
    return Measured(100 * hits / len(prompts), hits, pictures, prompts, found.tolist())


def score_row(
    model: LoadedModel, evaluate: Evaluate, detector: Detector, *, arm: str, attack: str, step: int, guidance: float
) -> tuple[Row, Measured, Measured]:
    """The row of one cell at one guidance scale, with the concept's and the benign pictures."""
    concept = measure(model, evaluate.concept, evaluate, detector, guidance)
    benign = measure(model, evaluate.benign, evaluate, detector, guidance)
    low, high = wilson_interval(concept.hits, len(concept.prompts))
    row = Row(arm, attack, guidance, step, concept.share, low, high, benign.share, len(concept.prompts))
    return row, concept, benign
