"""ESD, erased Stable Diffusion (Gandikota et al. 2023): steer the prediction away from the concept.

Target (paper section 3.2): eps*(x_t, empty) - eta [eps*(x_t, c) - eps*(x_t, empty)], with eps* the frozen base.
ESD-x, ESD-u and ESD-f are this loss on the subsets cross_attention, non_cross_attention and full. See docs/methods.md.
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

from adapter_mu.data.cache import cached, content_key, pipeline_fingerprint
from adapter_mu.data.prompts import Prompt
from adapter_mu.data.seeds import generator_for
from adapter_mu.methods.concepts import concept_groups, in_turn
from adapter_mu.methods.registry import register
from adapter_mu.methods.walks import Teacher, WalkOptions, draw_states, walk
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, predict_noise, unconditional
from adapter_mu.params import Adapter


class EsdOptions(WalkOptions):
    """`eta` in the form of `target`: the newer public code's value is larger by one.

    `concepts` replaces the prompts of the forget set. x_t comes from the frozen base (the paper), from the model that
    is trained (the original code) or from its average with `decay`; a moving one walks anew every `refresh_every`
    steps.
    """

    eta: float = Field(1.0, ge=0)
    target: Literal["paper", "official"] = "paper"
    concepts: list[str] = []
    x_t: Literal["base", "student", "ema"] = "base"
    decay: float = Field(0.999, ge=0, lt=1)
    refresh_every: int = Field(50, gt=0)

    @property
    def paper_eta(self) -> float:
        """Eta of the paper's target: official eps*(c) - eta [eps*(c) - eps*(empty)] is the paper's with eta - 1."""
        return self.eta if self.target == "paper" else self.eta - 1


def esd_target(conditional: Tensor, unconditional: Tensor, eta: float) -> Tensor:
    """The paper's target, any shape: eps*(empty) - eta [eps*(c) - eps*(empty)]."""
    return unconditional - eta * (conditional - unconditional)


@dataclass(frozen=True)
class Trajectories:
    """The base's way from noise to picture: states and targets (N, S, C, H, W), timesteps (S,), conditions (N, ...)."""

    states: Tensor
    targets: Tensor
    timesteps: Tensor
    condition: Conditioning


@register("esd", EsdOptions)
class Esd:
    """Every trajectory is of one prompt, which is also the concept c of its target, so that concepts never mix.

    Of the frozen base trajectories and targets are computed once and cached.
    """

    trajectories: Trajectories  # set by prepare, where x_t comes from the base

    def __init__(self, options: EsdOptions) -> None:
        """Options from a recipe."""
        self.options = options
        decay = options.decay if options.x_t == "ema" else 0.0
        self.teacher = None if options.x_t == "base" else Teacher(options, decay, options.refresh_every)

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Choose the prompts; walk them through the base's sampler and compute every state's target."""
        self.texts = in_turn(concept_groups(prompts, self.options.concepts), self.options.trajectories)
        self.model, self.condition, self.empty = model, encode_prompts(model, self.texts), unconditional(model)
        if self.teacher:
            return
        others = pipeline_fingerprint(model.pipeline)  # text encoders and scheduler
        key = content_key(method="esd", base=base_hash, others=others, prompts=self.texts, **self.options.model_dump())
        found = cached(folder / f"{key}.safetensors", lambda: self._walk(model))
        on_device = {name: tensor.to(model.device) for name, tensor in found.items()}
        self.trajectories = Trajectories(**on_device, condition=self.condition)

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """Mean squared distance to the target over states drawn by (seed, step)."""
        known: Trajectories | Teacher = self.trajectories if self.teacher is None else self.teacher
        if self.teacher:
            self.teacher.walk_when_due(self.texts, seed, step, "ESD trajectories")
        walks, stages = draw_states(known.states, batch_size, generator_for(seed, "esd", step))
        x, t, concept = known.states[walks, stages], known.timesteps[stages], self.condition[walks]
        target = self._targets(model, x, t, concept) if self.teacher else self.trajectories.targets[walks, stages]
        return F.mse_loss(predict_noise(model, params, x, t, concept), target)

    @torch.no_grad()
    def _walk(self, model: LoadedModel) -> dict[str, Tensor]:
        """States with their targets and timesteps, on the CPU."""
        states, timesteps = walk(model, self.texts, list(range(len(self.texts))), self.options, "ESD trajectories")
        targets = [self._in_parts(model, states[:, i], int(t)) for i, t in enumerate(timesteps)]
        return {"states": states, "targets": torch.stack(targets, dim=1), "timesteps": timesteps}

    def _in_parts(self, model: LoadedModel, states: Tensor, timestep: int) -> Tensor:
        size, parts = self.options.batch_size, []
        for start in range(0, len(states), size):
            x = states[start : start + size].to(model.device)
            parts.append(self._targets(model, x, timestep, self.condition[start : start + size]).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def _targets(self, model: LoadedModel, x: Tensor, timesteps: Tensor | int, concept: Conditioning) -> Tensor:
        with_concept = predict_noise(model, None, x, timesteps, concept)
        without = predict_noise(model, None, x, timesteps, self.empty.expand(len(x)))
        return esd_target(with_concept, without, self.options.paper_eta).float()

    def follow(self, adapter: Adapter) -> None:
        """For a moving x_t: what to follow."""
        if self.teacher:
            self.teacher.follow(self.model, adapter)

    def after_step(self, theta: Mapping[str, Tensor]) -> None:
        """For a moving x_t."""
        if self.teacher:
            self.teacher.after_step(theta)

    def state(self) -> dict[str, Tensor]:
        """Of a moving x_t; else nothing."""
        return self.teacher.state() if self.teacher else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up where `state` was given."""
        if self.teacher:
            self.teacher.load_state(state)

    def result(self) -> None:
        """Theta itself is saved."""
