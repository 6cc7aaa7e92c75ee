"""Scores of a model: how often the concept and the benign concepts are found, at one guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapter_mu.data.prompts import Prompt, expand
from adapter_mu.data.sampling import decode, guidance_of, sample_latents, seeds_of
from adapter_mu.evaluate.detectors import Detector, new_detector
from adapter_mu.evaluate.detectors.inputs import Pictures
from adapter_mu.evaluate.pictures import SHOWN
from adapter_mu.evaluate.statistics import Row, wilson_interval
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Evaluate, Prompts

AT_ONCE = 64  # pictures in memory
FIRST_SEED, SEED_STRIDE = 7_000_000, 1_000_003  # keep the pictures' noise apart from that of the training sets


@dataclass(frozen=True)
class Measured:
    """In which pictures, one a prompt in order, the concept asked for was found, (N,) booleans.

    `thresholds` has the same at each of the detector's thresholds by name; `found` is the first of them. Of the
    pictures themselves only the first `SHOWN` are kept, (n, 3, H, W): hundreds of SDXL's would fill the memory.
    """

    pictures: Tensor
    found: Tensor
    thresholds: dict[str, Tensor] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        """In how many pictures the concept was found."""
        return int(self.found.sum())

    @property
    def share(self) -> float:
        """The same in percent."""
        return 100 * self.hits / len(self.found)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, in percent."""
        return wilson_interval(self.hits, len(self.found))

    @property
    def marks(self) -> str:
        """One character a picture: 1 where the concept was found, else 0."""
        return "".join("1" if one else "0" for one in self.found.tolist())


def judge(detector: Detector, pictures: Pictures, concepts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Which pictures show their concept, (N,) booleans, and the same at each threshold, looking once."""
    if not detector.thresholds:
        return detector.found(pictures, concepts), {}
    scores = detector.scores(pictures, concepts)
    above = {name: scores > limit for name, limit in detector.thresholds.items()}
    return next(iter(above.values())), above


def detector_facts(evaluate: Evaluate) -> dict[str, dict[str, Any]]:
    """For `meta` of results.json: what scores depend on besides the pictures."""
    facts = {"detector": new_detector(evaluate.detector).facts()}
    return facts | (
        {"benign_detector": new_detector(evaluate.benign_detector).facts()} if evaluate.benign_detector else {}
    )


def measure(model: LoadedModel, spec: Prompts, evaluate: Evaluate, detector: Detector, guidance: float) -> Measured:
    """Draw one picture a prompt, the same noise for every model, and see which show their concept.

    Rows of a published CSV are drawn from their own seeds, and at the usual guidance with the guidance they ask for.
    """
    prompts = expand(spec)
    latents = draw_latents(model, prompts, spec.seed, evaluate, guidance)
    shows, size = [prompt.shows for prompt in prompts], max(AT_ONCE, SHOWN)
    kept, seen, above = latents[:0], [], []
    for start in range(0, len(prompts), size):
        pictures = decode(model, latents[start : start + size], evaluate.batch_size)
        kept = kept if start else pictures[:SHOWN].clone()
        found, by_name = judge(detector, pictures, shows[start : start + size])
        seen.append(found)
        above.append(by_name)
    return Measured(kept, torch.cat(seen), {name: torch.cat([part[name] for part in above]) for name in above[0]})


def draw(
    model: LoadedModel,
    prompts: list[Prompt],
    seed: int,
    evaluate: Evaluate,
    guidance: float,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1]; `rows`: of these prompts alone, as they would come out with all the others."""
    return decode(model, draw_latents(model, prompts, seed, evaluate, guidance, rows), evaluate.batch_size)


def draw_latents(
    model: LoadedModel,
    prompts: list[Prompt],
    seed: int,
    evaluate: Evaluate,
    guidance: float,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Scaled latents (N, C, H, W); prompts that bring a seed keep it, and their guidance as the recipe says."""
    seeds = seeds_of(prompts, FIRST_SEED + seed * SEED_STRIDE)
    own = evaluate.own_guidance and guidance == evaluate.usual_guidance
    scales = guidance_of(prompts, guidance) if own else [guidance] * len(prompts)
    rows = range(len(prompts)) if rows is None else rows
    return sample_latents(
        model,
        [prompts[row].text for row in rows],
        [seeds[row] for row in rows],
        steps=evaluate.steps,
        guidance=[scales[row] for row in rows],
        batch_size=evaluate.batch_size,
        label=f"scoring at guidance {guidance:g}",
    )


def score_row(
    model: LoadedModel,
    evaluate: Evaluate,
    detector: Detector,
    *,
    arm: str,
    attack: str,
    step: int,
    guidance: float,
    seed: int = 0,
) -> tuple[Row, Measured, Measured]:
    """The row of one cell at one guidance scale, with the concept's and the benign pictures; `seed` is the attack's."""
    judge_of_benign = new_detector(evaluate.benign_detector) if evaluate.benign_detector else detector
    concept = measure(model, evaluate.concept, evaluate, detector, guidance)
    benign = measure(model, evaluate.benign, evaluate, judge_of_benign, guidance)
    return make_row(concept, benign, arm=arm, attack=attack, step=step, guidance=guidance, seed=seed), concept, benign


def make_row(
    concept: Measured, benign: Measured, *, arm: str, attack: str, step: int, guidance: float, seed: int = 0
) -> Row:
    """What was measured as a line of results.json."""
    several = concept.thresholds if len(concept.thresholds) > 1 else {}
    return Row(
        arm,
        attack,
        guidance,
        step,
        concept.share,
        *concept.interval,
        benign.share,
        len(concept.found),
        seed,
        *benign.interval,
        {name: 100 * int(above.sum()) / len(above) for name, above in several.items()},
        concept.marks,
        benign.marks,
    )
