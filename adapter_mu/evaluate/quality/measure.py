"""What unlearning did to a model's other pictures, as items for results.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapter_mu.data.cache import cached, content_key, fingerprint
from adapter_mu.data.prompts import Prompt, expand
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.detectors.inputs import as_tensor
from adapter_mu.evaluate.folder import picture_files
from adapter_mu.evaluate.quality.agreement import Agreement, agreement
from adapter_mu.evaluate.quality.distances import SUBSETS, check_torchmetrics, fid, kid, subset_size
from adapter_mu.evaluate.quality.features import Features, feature_network
from adapter_mu.evaluate.quality.perceptual import Distance, perceptual_distance
from adapter_mu.evaluate.scores import draw
from adapter_mu.evaluate.statistics import mean_interval
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Evaluate, Quality

Item = dict[str, Any]
AT_ONCE = 64  # pictures in memory, rounded to whole batches
OTHER_NOISE = 500  # added to the list's seed for the base's pictures that stand for real ones


@dataclass
class _Tools:
    """The networks that the measures need; only those are read."""

    features: Features | None
    agreement: Agreement | None
    distance: Distance | None


@dataclass
class _Seen:
    """What is kept of the pictures, one row each."""

    features: list[Tensor] = field(default_factory=list)
    agreement: list[Tensor] = field(default_factory=list)
    distance: list[Tensor] = field(default_factory=list)


def check_quality(evaluate: Evaluate) -> None:
    """Everything that `evaluate.quality` needs is here.

    Raises:
        RecipeError: the reference has no pictures, or there are too few prompts for FID and KID.
        ModelError: a package or weights are missing; the sentence has the command that brings them.
    """
    spec = evaluate.quality
    if spec is None:
        return
    _tools(evaluate, spec)
    prompts = expand(spec.prompts or evaluate.benign)
    if {"fid", "kid"} & set(spec.measures):
        check_torchmetrics()
        if len(prompts) < 2 or (spec.reference and len(_files(spec.reference)) < 2):
            raise RecipeError("FID and KID compare sets; give at least two prompts and two reference pictures.")


def quality(
    model: LoadedModel,
    base: LoadedModel,
    evaluate: Evaluate,
    *,
    arm: str,
    attack: str = "none",
    step: int = 0,
    cache: Path | None = None,
) -> list[Item]:
    """CLIP score, FID, KID and LPIPS of a model, as `evaluate.quality` asks; [] where it asks for none.

    Every picture passes through 8 bits, as if it had been saved. LPIPS compares with the base's picture of the same
    prompt and noise and is left out for the base itself (it would be 0).

    Args:
        model: The model, of any arm.
        base: What it was made from; may be the same object.
        evaluate: The recipe's part.
        arm: Named in the items.
        attack: Named in the items.
        step: Named in the items.
        cache: A folder to keep the reference's features in.

    Returns:
        {arm, attack, step, metric, value, low, high, images, convention}. CLIP score and LPIPS have 95 % bootstrap
        intervals over pictures, KID one standard deviation over its subsets, FID none.

    Raises:
        RecipeError, ModelError: as in `check_quality`.
    """
    spec = evaluate.quality
    if spec is None:
        return []
    prompts, tools = expand(spec.prompts or evaluate.benign), _tools(evaluate, spec)
    own, seen = model is base, _Seen()
    for rows, pictures in _drawn(model, prompts, evaluate, spec):
        if tools.features:
            seen.features.append(tools.features.of(pictures))
        if tools.agreement:
            seen.agreement.append(tools.agreement.of(pictures, [prompts[row].text for row in rows]))
        if tools.distance and not own:
            twins = _pictures(base, prompts, rows, evaluate, spec)
            seen.distance.append(tools.distance.of(pictures, twins))
    place = {"arm": arm, "attack": attack, "step": step}
    return [place | item for item in _items(seen, tools, base, evaluate, spec, cache)]


def _items(
    seen: _Seen, tools: _Tools, base: LoadedModel, evaluate: Evaluate, spec: Quality, cache: Path | None
) -> Iterator[Item]:
    """In the order that the recipe asks for them."""
    reference, against = None, ""
    for measure in spec.measures:
        if measure == "clip_score" and tools.agreement:
            yield _mean("clip_score", torch.cat(seen.agreement), tools.agreement.convention)
        elif measure == "lpips" and tools.distance and seen.distance:
            yield _mean("lpips", torch.cat(seen.distance), tools.distance.convention)
        elif measure in ("fid", "kid") and tools.features:
            if reference is None:
                reference, against = _reference(base, tools.features, evaluate, spec, cache)
            features = torch.cat(seen.features)
            convention = f"{measure.upper()} in {tools.features.name}, {against}"
            if measure == "fid":
                yield _item("fid", fid(features, reference), None, None, len(features), convention)
            else:
                subsets = (
                    f", {SUBSETS} subsets of {subset_size(features, reference)}, +- one standard deviation of them"
                )
                yield _item("kid", *kid(features, reference), len(features), convention + subsets)


def _mean(metric: str, numbers: Tensor, convention: str) -> Item:
    """The mean over the pictures that have a number."""
    known = numbers[~numbers.isnan()].tolist()
    if not known:
        return _item(metric, None, None, None, 0, f"{convention} (no prompt says anything it can read)")
    return _item(metric, *mean_interval(known), len(known), convention)


def _item(
    metric: str, value: float | None, low: float | None, high: float | None, images: int, convention: str
) -> Item:
    return {"metric": metric, "value": value, "low": low, "high": high, "images": images, "convention": convention}


def _tools(evaluate: Evaluate, spec: Quality) -> _Tools:
    wanted = set(spec.measures)
    return _Tools(
        feature_network(evaluate) if wanted & {"fid", "kid"} else None,
        agreement(evaluate) if "clip_score" in wanted else None,
        perceptual_distance(evaluate) if "lpips" in wanted else None,
    )


def _reference(
    base: LoadedModel, network: Features, evaluate: Evaluate, spec: Quality, cache: Path | None
) -> tuple[Tensor, str]:
    """Features (M, D) of what FID and KID compare with, and that in words."""
    if spec.reference is not None:
        files = _files(spec.reference)
        parts = [as_tensor([file]) for file in files]
        return torch.cat([network.of(part) for part in parts]), f"against {len(files)} pictures of {spec.reference}"
    prompts = [replace(prompt, seed=None) for prompt in expand(spec.prompts or evaluate.benign)]

    def make() -> dict[str, Tensor]:
        parts = _drawn(base, prompts, evaluate, spec, OTHER_NOISE)
        return {"features": torch.cat([network.of(pictures) for _, pictures in parts])}

    said = f"against {len(prompts)} pictures of the base, same prompts, other noise"
    if cache is None:
        return make()["features"], said
    texts = [[prompt.text, prompt.guidance] for prompt in prompts]
    drawn = [_guidance(evaluate, spec), evaluate.steps, evaluate.own_guidance, _seed(evaluate, spec)]
    key = content_key(base=fingerprint(base.unet), prompts=texts, drawn=drawn, network=network.name)
    return cached(cache / f"quality_{key}.safetensors", make)["features"], said


def _drawn(
    model: LoadedModel, prompts: list[Prompt], evaluate: Evaluate, spec: Quality, noise: int = 0
) -> Iterator[tuple[range, Tensor]]:
    """The model's pictures, some at a time, and which prompts they are of."""
    size = evaluate.batch_size * max(1, AT_ONCE // evaluate.batch_size)
    for start in range(0, len(prompts), size):
        rows = range(start, min(start + size, len(prompts)))
        yield rows, _pictures(model, prompts, rows, evaluate, spec, noise)


def _pictures(
    model: LoadedModel, prompts: list[Prompt], rows: range, evaluate: Evaluate, spec: Quality, noise: int = 0
) -> Tensor:
    pictures = draw(model, prompts, _seed(evaluate, spec) + noise, evaluate, _guidance(evaluate, spec), rows)
    return (pictures * 255).round() / 255


def _guidance(evaluate: Evaluate, spec: Quality) -> float:
    return evaluate.usual_guidance if spec.guidance is None else spec.guidance


def _seed(evaluate: Evaluate, spec: Quality) -> int:
    return (spec.prompts or evaluate.benign).seed


def _files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; RecipeError when there are none."""
    if not (files := picture_files(folder)):
        raise RecipeError(f"`evaluate.quality.reference`: there are no pictures in {folder}; correct the folder.")
    return files
