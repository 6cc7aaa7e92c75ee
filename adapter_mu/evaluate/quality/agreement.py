"""How well a picture agrees with its prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_mu.evaluate.clip import Clip
from adapter_mu.evaluate.quality.features import uses_shapes
from adapter_mu.recipe import Evaluate
from adapter_mu.shapes.detector import HEADS, load_shapes_detector, read
from adapter_mu.shapes.vocabulary import ATTRIBUTES

CLIP_CONVENTION = "100 max(cos, 0) of CLIP {}"
SHAPES_CONVENTION = (
    "caption agreement, not CLIP: percent of the shape, colour, background and texture words of a prompt "
    "that the shapes detector reads off its picture"
)


@dataclass(frozen=True)
class Agreement:
    """A measure: its name as results give it, and one number a picture."""

    convention: str
    of: Callable[[Tensor, list[str]], Tensor]
    """(N,) numbers for pictures (N, 3, H, W) and their prompts; not a number where a prompt says nothing readable."""


def agreement(evaluate: Evaluate) -> Agreement:
    """CLIP score, or caption agreement in the shapes world; ModelError when the CLIP is not on this machine."""
    assert evaluate.quality is not None
    if uses_shapes(evaluate):
        network = load_shapes_detector()
        return Agreement(SHAPES_CONVENTION, lambda pictures, prompts: captions_read(read(network, pictures), prompts))
    name = evaluate.quality.clip
    clip = Clip(name, "The CLIP of the CLIP score (`evaluate.quality.clip`)")

    def score(pictures: Tensor, prompts: list[str]) -> Tensor:
        return 100 * (clip.pictures(pictures) * clip.texts(prompts)).sum(1).clamp(min=0)

    return Agreement(CLIP_CONVENTION.format(name), score)


def captions_read(seen: dict[str, Tensor], prompts: list[str]) -> Tensor:
    """The share, in percent, of each prompt's attribute words that were `seen` (class indices (N,) by attribute)."""
    said = [_attributes(prompt) for prompt in prompts]
    right = [[int(seen[name][i]) == wanted for name, wanted in words.items()] for i, words in enumerate(said)]
    return torch.tensor([100 * sum(one) / len(one) if one else torch.nan for one in right])


def _attributes(prompt: str) -> dict[str, int]:
    """The index of each attribute that the prompt names, sizes left out: the detector does not read them."""
    words = prompt.lower().split()
    return {
        name: next(i for i, value in enumerate(ATTRIBUTES[name]) if value in words)
        for name in HEADS
        if set(ATTRIBUTES[name]) & set(words)
    }
