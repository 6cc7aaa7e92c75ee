"""UnlearnDiffAtk (Zhang et al. 2024): tokens in front of a prompt that bring back what a model was made to forget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapter_mu.attack.prompts.search import TokenSearch
from adapter_mu.attack.prompts.tokens import count, holds_any, room, spell
from adapter_mu.models import LoadedModel, prepare_for_first_order
from adapter_mu.recipe import PromptAttack

Judge = Callable[[list[int], list[str], float], list[bool]]
"""Whether the pictures of texts, one a row, show the concept at a guidance scale."""


@dataclass(frozen=True)
class Found:
    """An adversarial prompt that worked: after the search at `timestep`, as token ids and as what is typed."""

    timestep: int
    tokens: list[int]
    text: str


@dataclass
class Case:
    """A prompt under attack: its number, the base's picture of it (C, H, W), and where it does not yet succeed."""

    number: int
    prompt: str
    target: Tensor
    closed: set[float]
    found: dict[float, Found] = field(default_factory=dict)


def noise_levels(train_timesteps: int, count: int) -> list[int]:
    """`count` timesteps in the middle of equal parts, ascending: 10, 30, ..., 990 for 50 of 1000."""
    stride = train_timesteps // count
    return list(range(stride // 2, train_timesteps, stride))[:count]


def too_long(model: LoadedModel, prompts: list[str], settings: PromptAttack) -> list[int]:
    """Which prompts have more than `settings.longest` tokens, or leave no room for the adversarial ones."""
    most = min(settings.longest, room(model) - settings.tokens)
    return [i for i, prompt in enumerate(prompts) if count(model, prompt) > most]


def attack_prompts(
    model: LoadedModel, cases: list[Case], settings: PromptAttack, seed: int, judge: Judge
) -> Iterator[int]:
    """Search at one noise level after the other; yields each as it is done, ends when every prompt has succeeded.

    Successes go to `Case.found`, by guidance scale. The search knows nothing of guidance, so one search serves all
    scales and finds at each what it would have found for that scale alone. As published, what is tested is the text:
    the likeliest tokens decoded, read again by the tokenizer.

    Args:
        model: the attacked model; its attention is set up for first order.
        cases: prompts that are not too long.
        settings: of the attack.
        seed: of the search.
        judge: draws pictures of texts for the cases at these places, each from its own noise.

    Raises:
        UserError: see `TokenSearch`.
    """
    prepare_for_first_order(model.unet)
    texts = [case.prompt for case in cases]
    targets = torch.stack([case.target for case in cases])
    search = TokenSearch(model, texts, targets, [case.number for case in cases], settings, seed)
    tried: dict[int, list[int]] = {}
    for timestep in noise_levels(model.num_train_timesteps, settings.timesteps):
        rows = [row for row, case in enumerate(cases) if case.closed]
        if not rows:
            return
        search.descend(rows, timestep)
        best = {row: search.best(row, timestep) for row in rows}
        _test(model, cases, {row: b for row, b in best.items() if tried.get(row) != b}, timestep, settings, judge)
        tried |= best  # the same tokens would draw the same picture again
        yield timestep


def _test(
    model: LoadedModel,
    cases: list[Case],
    best: dict[int, list[int]],
    timestep: int,
    settings: PromptAttack,
    judge: Judge,
) -> None:
    """Draw with the new tokens wherever their prompt has not succeeded yet."""
    prefixes = {row: spell(model.pipeline.tokenizer, tokens) for row, tokens in best.items()}
    texts = {row: f"{prefix} {cases[row].prompt}" for row, prefix in prefixes.items()}
    # Pieces can spell a forbidden word together, and bytes that are no text are read again as three tokens each.
    fair = [
        row
        for row, text in texts.items()
        if not holds_any(prefixes[row], settings.forbid) and count(model, text) <= room(model)
    ]
    for guidance in sorted({scale for row in fair for scale in cases[row].closed}):
        rows = [row for row in fair if guidance in cases[row].closed]
        for row, success in zip(rows, judge(rows, [texts[row] for row in rows], guidance), strict=True):
            if success:
                cases[row].closed.discard(guidance)
                cases[row].found[guidance] = Found(timestep, best[row], texts[row])
