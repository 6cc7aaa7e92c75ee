"""SDD, safe self-distillation (Kim et al. 2023): with the concept the model shall predict what it does without.

Loss (the meta-unlearning paper, section 3.2): |eps(x_t, c) - sg(eps(x_t, empty))|^2, both of the model that is trained.
x_t is sampled with guidance from a teacher, the exponential moving average of the trained weights, and the teacher is
what is saved. See docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.data.seeds import generator_for
from adapter_mu.methods.concepts import concept_groups
from adapter_mu.methods.registry import register
from adapter_mu.methods.walks import Teacher, WalkOptions, draw_states
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, predict_noise, unconditional
from adapter_mu.params import Adapter


class SddOptions(WalkOptions):
    """Which concept a step works on, the teacher, and how often it walks anew.

    A step distils one concept, in turn (`iterative`) or at `random`, or all of them in one prompt (`composite`); the
    teacher always draws all of them in one prompt, joined with ", ". `concepts` replaces the prompts of the forget set.
    """

    trajectories: int = Field(8, gt=0)
    refresh_every: int = Field(50, gt=0)
    decay: float = Field(0.999, ge=0, lt=1)
    concepts: list[str] = []
    concept_method: Literal["iterative", "composite", "random"] = "iterative"
    save: Literal["teacher", "student"] = "teacher"


@dataclass(frozen=True)
class Texts:
    """What the N trajectories of walk number `walk` show: all concepts joined in a prompt."""

    walk: int
    joined: list[str]
    conditions: list[Conditioning]
    """Of each concept apart, then of all joined; N rows each."""


@register("sdd", SddOptions)
class Sdd:
    """Walks the teacher's sampler every `refresh_every` steps and uses every state of its trajectories."""

    _texts: Texts | None = None

    def __init__(self, options: SddOptions) -> None:
        """Options from a recipe."""
        self.options = options
        self.teacher = Teacher(options, options.decay, options.refresh_every)

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Find the concepts; nothing here needs the base alone."""
        self.model, self.groups = model, concept_groups(prompts, self.options.concepts)
        self.empty = unconditional(model)

    def follow(self, adapter: Adapter) -> None:
        """The teacher starts where the adapter is."""
        self.teacher.follow(self.model, adapter)

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """Mean squared distance to the prediction without text, over states drawn by (seed, step)."""
        texts, generator = self._texts_of(step), generator_for(seed, "sdd", step)
        self.teacher.walk_when_due(texts.joined, seed, step, "SDD trajectories")
        walks, stages = draw_states(self.teacher.states, batch_size, generator)
        x, t = self.teacher.states[walks, stages], self.teacher.timesteps[stages]
        concept = texts.conditions[self._turn(step, generator)][walks]
        with torch.no_grad():
            without = predict_noise(model, params, x, t, self.empty.expand(batch_size))
        return F.mse_loss(predict_noise(model, params, x, t, concept), without)

    def _turn(self, step: int, generator: torch.Generator) -> int:
        """Which of a walk's conditions a step works on."""
        count = len(self.groups)
        if self.options.concept_method == "composite":
            return count
        if self.options.concept_method == "random":
            return int(torch.randint(count, (), generator=generator))
        return step % count

    def _texts_of(self, step: int) -> Texts:
        """Those of the walk that the step belongs to; every walk goes on in each concept's prompts."""
        number, size = step // self.options.refresh_every, self.options.trajectories
        if self._texts is None or self._texts.walk != number:
            places = range(number * size, (number + 1) * size)
            apart = [[group[i % len(group)] for i in places] for group in self.groups]
            joined = [", ".join(texts) for texts in zip(*apart, strict=True)]
            conditions = [encode_prompts(self.model, texts) for texts in (*apart, joined)]
            self._texts = Texts(number, joined, conditions)
        return self._texts

    def after_step(self, theta: Mapping[str, Tensor]) -> None:
        """The teacher follows."""
        self.teacher.after_step(theta)

    def state(self) -> dict[str, Tensor]:
        """The teacher's."""
        return self.teacher.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up where `state` was given."""
        self.teacher.load_state(state)

    def result(self) -> Mapping[str, Tensor] | None:
        """The teacher, as published, or theta itself."""
        return self.teacher.theta if self.options.save == "teacher" else None
