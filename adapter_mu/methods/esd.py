"""ESD, erased Stable Diffusion (Gandikota et al. 2023): steer the prediction away from the concept.

Target (paper section 3.2): eps*(x_t, empty) - eta [eps*(x_t, c) - eps*(x_t, empty)], with eps* the frozen base.
ESD-x, ESD-u and ESD-f are this loss on the subsets cross_attention, non_cross_attention and full.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@register("esd", EsdOptions)
class Esd:
    """x_t comes from the frozen base, so trajectories and targets are computed once and cached.

    Every state of a trajectory is paired with the timestep it is about to be denoised at; the first pairs
    pure noise with the scheduler's first timestep.
    """

    def __init__(self, options: EsdOptions) -> None:
        self.options = options
        self.states, self.targets, self.timesteps = (torch.empty(0),) * 3
        self.condition: Conditioning

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Walk `trajectories` prompts through the base's sampler and compute every state's target."""
        texts = [prompts[i % len(prompts)].text for i in range(self.options.trajectories)]
        key = content_key(method="esd", base=base_hash, prompts=texts, **self.options.model_dump())
        found = cached(folder / f"{key}.safetensors", lambda: self._walk(model, texts))
        self.states, self.targets, self.timesteps = (
            found[n].to(model.device) for n in ("states", "targets", "timesteps")
        )
        self.condition = encode_prompts(model, texts)

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        """Mean squared distance to the target over states drawn by (seed, step)."""
        generator = generator_for(seed, "esd", step)
        walk = torch.randint(self.states.shape[0], (batch_size,), generator=generator).to(self.states.device)
        stage = torch.randint(self.states.shape[1], (batch_size,), generator=generator).to(self.states.device)
        predicted = predict_noise(model, params, self.states[walk, stage], self.timesteps[stage], self.condition[walk])
        return F.mse_loss(predicted.float(), self.targets[walk, stage])

    @torch.no_grad()
    def _walk(self, model: LoadedModel, texts: list[str]) -> dict[str, Tensor]:
        chunks: dict[int, list[Tensor]] = {}
        options = self.options

        def keep(start: int, timestep: Tensor, latents: Tensor) -> None:
            chunks.setdefault(int(timestep), []).append(latents.float().cpu())

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
        timesteps = torch.tensor(list(chunks))
        states = torch.stack([torch.cat(parts) for parts in chunks.values()], dim=1)
        condition = encode_prompts(model, texts)
        targets = [self._targets(model, states[:, i], int(t), condition) for i, t in enumerate(timesteps)]
        return {"states": states, "targets": torch.stack(targets, dim=1), "timesteps": timesteps}

    def _targets(self, model: LoadedModel, states: Tensor, timestep: int, condition: Conditioning) -> Tensor:
        parts = []
        for start in range(0, len(states), self.options.batch_size):
            rows = slice(start, start + self.options.batch_size)
            x = states[rows].to(model.device)
            t = torch.full((len(x),), timestep, device=model.device)
            with_concept = predict_noise(model, None, x, t, condition[rows])
            without = predict_noise(model, None, x, t, unconditional(model, len(x)))
            parts.append(esd_target(with_concept.float(), without.float(), self.options.eta).cpu())
        return torch.cat(parts)
