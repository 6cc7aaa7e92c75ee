"""Attacks that search for a prompt and leave the model's weights alone."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from adapter_mu.recipe.strict import Strict

PromptKind = Literal["unlearndiffatk"]
PROMPT_KINDS = get_args(PromptKind)


class PromptAttack(Strict):
    """An entry of `attacks` whose `kind` is one of PROMPT_KINDS, on the prompts of `evaluate.concept`.

    The defaults are those of UnlearnDiffAtk's published configuration (Zhang et al. 2024), except `batch_size`, which
    changes nothing but speed and memory. `among: words` keeps to tokens that come back as themselves when typed.
    """

    kind: PromptKind
    seeds: list[int] = Field([0], min_length=1)  # of the search; one result each
    prompts: int = Field(0, ge=0)  # how many of the concept's prompts, the first ones; 0: all
    tokens: int = Field(5, gt=0)  # k, put in front of the prompt
    timesteps: int = Field(50, gt=0, le=1000)  # noise levels, evenly spread: 10, 30, ..., 990
    iterations: int = Field(40, ge=0)  # Adam steps at each; 0: no search but random tokens, to compare with
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    among: Literal["all", "words"] = "all"
    forbid: list[str] = []  # words that the adversarial tokens must not contain
    longest: int = Field(60, gt=0)  # prompts with more tokens are left out
    batch_size: int = Field(4, gt=0)  # prompts attacked at once
