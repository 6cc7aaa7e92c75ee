"""Trajectories: a model's way from noise to picture, state by state; where ESD and SDD take their x_t from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapter_mu.data.sampling import sample_latents
from adapter_mu.models import LoadedModel, copy_unet, with_unet
from adapter_mu.params import Adapter
from adapter_mu.recipe import Strict


class WalkOptions(Strict):
    """How many trajectories, of how many states each, at which guidance; `batch_size` of them at once."""

    trajectories: int = Field(16, gt=0)
    sampler_steps: int = Field(50, gt=0)
    guidance: float = Field(3.0, ge=0)
    batch_size: int = Field(4, gt=0)


def walk(
    model: LoadedModel, texts: list[str], seeds: list[int], options: WalkOptions, label: str
) -> tuple[Tensor, Tensor]:
    """Every state x_t of one trajectory a text, and the timestep each is about to be denoised at.

    The first pairs pure noise with the scheduler's first timestep: the diffusers port of SDD and ESD pairs the
    finished picture with it, in one of its 50 cases.

    Returns:
        States (N, S, C, H, W) in fp32 and timesteps (S,), on the CPU.
    """
    seen: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)  # by the first row of a batch

    def keep(first_row: int, timestep: Tensor, x_t: Tensor) -> None:
        # A list, because some schedulers (PNDM) pass a timestep twice; rounded, because some (Euler) take between.
        seen[first_row].append((round(float(timestep)), x_t.float().cpu()))

    sample_latents(
        model,
        texts,
        seeds,
        steps=options.sampler_steps,
        guidance=options.guidance,
        batch_size=options.batch_size,
        watch=keep,
        label=label,
    )
    states = torch.cat([torch.stack([x_t for _, x_t in states], dim=1) for states in seen.values()])
    return states, torch.tensor([timestep for timestep, _ in seen[0]])


def draw_states(states: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` trajectories and stages of `states` (N, S, ...), uniformly; two tensors (count,) on their device."""
    walks, stages = (torch.randint(size, (count,), generator=generator) for size in states.shape[:2])
    return walks.to(states.device), stages.to(states.device)


class Teacher:
    """A model that follows the trained one, teacher <- decay teacher + (1 - decay) theta, and walks anew at times.

    With decay 0 it is the trained model itself. For LoRA the average is taken over the factors.
    """

    states: Tensor  # of the last walk, (N, S, C, H, W)
    timesteps: Tensor

    def __init__(self, options: WalkOptions, decay: float, refresh_every: int) -> None:
        self.options, self.decay, self.refresh_every = options, decay, refresh_every
        self.theta: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self, model: LoadedModel, adapter: Adapter) -> None:
        """Start where the adapter is; takes memory for one more copy of what the adapter touches."""
        self.adapter, self._model = adapter, model
        self.theta = {name: tensor.detach().clone() for name, tensor in adapter.parameters().items()}
        self._twin = with_unet(model, copy_unet(model.unet, set(adapter.materialize(self.theta))))

    @torch.no_grad()
    def after_step(self, theta: Mapping[str, Tensor]) -> None:
        """Move towards theta."""
        for name, tensor in self.theta.items():
            tensor.lerp_(theta[name].to(tensor), 1 - self.decay)

    @torch.no_grad()
    def walk_when_due(self, texts: list[str], seed: int, step: int, label: str) -> None:
        """New `states`, from noise that depends on (seed, step), if this is a step for it."""
        if step % self.refresh_every and hasattr(self, "states"):
            return
        unet: Any = self._twin.unet
        for name, weight in self.adapter.materialize(self.theta).items():
            unet.get_parameter(name).copy_(weight)
        seeds = [(seed * 1_000_003 + step) * 1_000_003 + i for i in range(len(texts))]
        self._hold(*walk(self._twin, texts, seeds, self.options, label))

    def _hold(self, states: Tensor, timesteps: Tensor) -> None:
        self.states, self.timesteps = states.to(self._model.device), timesteps.to(self._model.device)

    def state(self) -> dict[str, Tensor]:
        """Its weights and the states of its last walk."""
        own = {f"teacher.{name}": tensor for name, tensor in self.theta.items()}
        return own | {"states": self.states, "timesteps": self.timesteps}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up where `state` was given."""
        for name, tensor in self.theta.items():
            tensor.copy_(state[f"teacher.{name}"])
        self._hold(state["states"], state["timesteps"])
