"""ESD, erased Stable Diffusion (Gandikota et al. 2023): steer the prediction away from the concept.

Target (paper section 3.2): eps*(x_t, empty) - eta [eps*(x_t, c) - eps*(x_t, empty)], with eps* the frozen base.
ESD-x, ESD-u and ESD-f are this loss on the subsets cross_attention, non_cross_attention and full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapter_mu.data.cache import cached, content_key
from adapter_mu.data.prompts import Prompt
from adapter_mu.data.sampling import sample_latents
from adapter_mu.data.seeds import generator_for
from adapter_mu.methods.registry import register
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, predict_noise, unconditional
from adapter_mu.recipe import Strict


class EsdOptions(Strict):
    """`eta` as in the paper (the newer public code's value is larger by one); the rest says where x_t comes from."""

    eta: float = Field(1.0, ge=0)
    trajectories: int = Field(16, gt=0)
    sampler_steps: int = Field(50, gt=0)
    guidance: float = Field(3.0, ge=0)
    batch_size: int = Field(4, gt=0)


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
    """x_t comes from the frozen base, so trajectories and targets are computed once and cached.

    Every state of a trajectory is paired with the timestep it is about to be denoised at; the first pairs
    pure noise with the scheduler's first timestep.
    """

    trajectories: Trajectories  # set by prepare

    def __init__(self, options: EsdOptions) -> None:
        self.options = options

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Walk `trajectories` prompts through the base's sampler and compute every state's target."""
        texts = [prompts[i % len(prompts)].text for i in range(self.options.trajectories)]
        key = content_key(method="esd", base=base_hash, prompts=texts, **self.options.model_dump())
        found = cached(folder / f"{key}.safetensors", lambda: self._walk(model, texts))
        on_device = {name: tensor.to(model.device) for name, tensor in found.items()}
        self.trajectories = Trajectories(**on_device, condition=encode_prompts(model, texts))

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """Mean squared distance to the target over states drawn by (seed, step)."""
        generator, known = generator_for(seed, "esd", step), self.trajectories
        walk, stage = (
            torch.randint(count, (batch_size,), generator=generator).to(known.states.device)
            for count in known.states.shape[:2]
        )
        predicted = predict_noise(
            model, params, known.states[walk, stage], known.timesteps[stage], known.condition[walk]
        )
        return F.mse_loss(predicted, known.targets[walk, stage])

    @torch.no_grad()
    def _walk(self, model: LoadedModel, texts: list[str]) -> dict[str, Tensor]:
        """States with their targets and timesteps, on the CPU."""
        walks: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)  # by the first row of a batch
        options = self.options

        def keep(first_row: int, timestep: Tensor, x_t: Tensor) -> None:
            # A list, because some schedulers (PNDM) pass a timestep twice; rounded, because some (Euler) take between.
            walks[first_row].append((round(float(timestep)), x_t.float().cpu()))

        sample_latents(
            model,
            texts,
            list(range(len(texts))),
            steps=options.sampler_steps,
            guidance=options.guidance,
            batch_size=options.batch_size,
            watch=keep,
            label="ESD trajectories",
        )
        states = torch.cat([torch.stack([x_t for _, x_t in walk], dim=1) for walk in walks.values()])
        timesteps = [timestep for timestep, _ in walks[0]]
        condition = encode_prompts(model, texts)
        targets = [self._targets(model, states[:, i], t, condition) for i, t in enumerate(timesteps)]
        return {"states": states, "targets": torch.stack(targets, dim=1), "timesteps": torch.tensor(timesteps)}

    def _targets(self, model: LoadedModel, states: Tensor, timestep: int, condition: Conditioning) -> Tensor:
        empty, size, parts = unconditional(model), self.options.batch_size, []
        for start in range(0, len(states), size):
            x, concept = states[start : start + size].to(model.device), condition[start : start + size]
            with_concept = predict_noise(model, None, x, timestep, concept)
            without = predict_noise(model, None, x, timestep, empty.expand(len(x)))
            parts.append(esd_target(with_concept, without, self.options.eta).float().cpu())
        return torch.cat(parts)
