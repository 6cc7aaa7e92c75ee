"""The bars every shapes checkpoint must pass: prompted shape, colour and background found by the detector."""

from __future__ import annotations

import torch
from torch import Tensor

from adapter_mu.build_shapes.detector import labels
from adapter_mu.data.sampling import decode, sample_latents
from adapter_mu.data.seeds import generator_for
from adapter_mu.evaluate.pictures import SHOWN
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Sampler
from adapter_mu.shapes.detector import ShapesDetector, read
from adapter_mu.shapes.vocabulary import SHAPES, caption, random_scenes

DEFAULT_SAMPLER = Sampler(steps=12, guidance=4.0, batch_size=100)


def quality(
    model: LoadedModel, detector: ShapesDetector, images: int, sampler: Sampler = DEFAULT_SAMPLER
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Per shape, the share (percent) of `images` pictures whose shape, colour and background are as prompted.

    Also returns the first SHOWN pictures of each shape, (len(SHAPES) * SHOWN, 3, 32, 32).
    """
    table, shown = {}, []
    for shape in SHAPES:
        scenes = random_scenes(images, generator_for(99, shape), (shape,))
        latents = sample_latents(model, [caption(s) for s in scenes], list(range(images)), **sampler.model_dump())
        pictures = decode(model, latents, sampler.batch_size)
        seen, wanted = read(detector, pictures), labels(scenes)
        table[shape] = {name: 100 * (seen[name] == wanted[name]).float().mean().item() for name in seen}
        shown.append(pictures[:SHOWN])
    return table, torch.cat(shown)
