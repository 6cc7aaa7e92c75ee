"""Scores of a model: how often the concept and the benign concepts are found, at one guidance scale."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adapter_mu.data.prompts import expand
from adapter_mu.data.sampling import decode, sample_latents
from adapter_mu.evaluate.detectors import Detector
from adapter_mu.evaluate.statistics import Row, wilson_interval
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Evaluate, Prompts

FIRST_SEED, SEED_STRIDE = 7_000_000, 1_000_003  # keep the pictures' noise apart from that of the training sets


@dataclass(frozen=True)
class Measured:
    """Pictures (N, 3, H, W), one a prompt in order, and in which the concept asked for was found, (N,) booleans."""

    pictures: Tensor
    found: Tensor

    @property
    def hits(self) -> int:
        """In how many pictures the concept was found."""
        return int(self.found.sum())

    @property
    def share(self) -> float:
        """The same in percent."""
        return 100 * self.hits / len(self.found)


def measure(model: LoadedModel, spec: Prompts, evaluate: Evaluate, detector: Detector, guidance: float) -> Measured:
    """Draw one picture a prompt, the same noise for every model, and see which show their concept."""
    prompts = expand(spec)
    latents = sample_latents(
        model,
        [prompt.text for prompt in prompts],
        [FIRST_SEED + spec.seed * SEED_STRIDE + i for i in range(len(prompts))],
        steps=evaluate.steps,
        guidance=guidance,
        batch_size=evaluate.batch_size,
        label=f"scoring at guidance {guidance:g}",
    )
    pictures = decode(model, latents, evaluate.batch_size)
    return Measured(pictures, detector.found(pictures, [prompt.shows for prompt in prompts]))


def score_row(
    model: LoadedModel, evaluate: Evaluate, detector: Detector, *, arm: str, attack: str, step: int, guidance: float
) -> tuple[Row, Measured, Measured]:
    """The row of one cell at one guidance scale, with the concept's and the benign pictures."""
    concept = measure(model, evaluate.concept, evaluate, detector, guidance)
    benign = measure(model, evaluate.benign, evaluate, detector, guidance)
    images = len(concept.found)
    low, high = wilson_interval(concept.hits, images)
    return Row(arm, attack, guidance, step, concept.share, low, high, benign.share, images), concept, benign
