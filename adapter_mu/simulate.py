"""The simulated attack on a real UNet: joins the mathematics of `meta` with models, adapters and sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from adapter_mu.data.sets import Batch, LatentSet
from adapter_mu.live import stage
from adapter_mu.meta import (
    SGD,
    AdamW,
    MetaWeights,
    Momentum,
    attacked_terms,
    backtracked_lr,
    current_terms,
    meta_gradient,
    total,
)
from adapter_mu.models import Conditioning, LoadedModel, add_noise, diffusion_loss, predict_noise, row_losses
from adapter_mu.params import Adapter, pull_back
from adapter_mu.params.dense import working_dtype
from adapter_mu.recipe import Meta

Tensors: TypeAlias = dict[str, Tensor]
Rule: TypeAlias = SGD | Momentum | AdamW
RULES: dict[str, type[Rule]] = {"sgd": SGD, "momentum": Momentum, "adamw": AdamW}


@dataclass(frozen=True)
class Sets:
    """D_forget and the two halves of D_retain."""

    forget: LatentSet
    related: LatentSet
    unrelated: LatentSet

    def retain_batches(self, size: int, seed: int, step: int, empty_share: float = 0.0) -> dict[str, Batch]:
        """A batch of each benign set, each of half `size` rows (rounded down, at least one)."""
        half = max(1, size // 2)
        return {
            name: part.batch(half, seed, step, name, empty_share)
            for name, part in (("related", self.related), ("unrelated", self.unrelated))
        }


def batch_loss(model: LoadedModel, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """L_DM on the batch at the UNet weights, a scalar."""
    return diffusion_loss(model, weights, batch.latents, batch.noise, batch.timesteps, batch.condition)


def joined(batches: list[Batch]) -> Batch:
    """All rows of the batches in order."""
    return Batch(
        torch.cat([b.latents for b in batches]),
        torch.cat([b.noise for b in batches]),
        torch.cat([b.timesteps for b in batches]),
        Conditioning.cat([b.condition for b in batches]),
    )


class MetaObjective:
    """Eq. 3 on a UNet: the attacker finetunes on D_forget, its result must stay bad at the concept.

    Every batch of step n depends only on (seed, n). As in the paper the meta loss is taken on the attacker's own
    (last) batch, here always with its captions, even where the attacker saw empty ones.
    """

    def __init__(
        self,
        model: LoadedModel,
        adapter: Adapter,
        sets: Sets,
        meta: Meta,
        batch_size: int,
        seed: int,
        chunk: int | None = None,
        apart: bool = False,
    ) -> None:
        """`chunk` as in `meta_gradient`; `apart`: differentiate the terms one by one, in the memory of the largest."""
        self.model, self.adapter, self.sets, self.meta = model, adapter, sets, meta
        self.batch_size, self.seed, self.chunk, self.apart = batch_size, seed, chunk, apart
        self.weights = MetaWeights(**{field.name: getattr(meta, field.name) for field in fields(MetaWeights)})
        self.attacker = RULES[meta.attacker.rule](lr=meta.attacker.lr)

    def gradient(self, step: int) -> tuple[Tensors, dict[str, float]]:
        """The meta gradient for the adapter's tensors (not yet weighted) and every term by name."""
        theta = self.adapter.parameters()
        start, batches = self._start(theta), self._attacker_batches(step)
        attacker = self._attacker_at(start, batches)
        retain = self.sets.retain_batches(self.batch_size, self.seed, step)
        log: dict[str, float] = {"tau": attacker.lr}
        result = meta_gradient(
            self._inner_loss,
            self._outer_losses(step, retain, log),
            start,
            batches,
            attacker=attacker,
            order=self.meta.order,
            hvp=self.meta.hvp,
            chunk=self.chunk,
        )
        gradient = self._to_theta(theta, result.gradient)
        with stage("restore"):
            current = self._current_gradient(theta, retain, log)
        for name, value in current.items():
            gradient[name] = gradient[name] + value
        log |= {f"attacker_loss_{m}": loss for m, loss in enumerate(result.inner_losses)}
        return gradient, log

    def _start(self, theta: Tensors) -> Tensors:
        """Where the attacker begins, in the space it moves in."""
        if self.meta.attacker.space == "adapter":
            return {name: tensor.detach() for name, tensor in theta.items()}
        with torch.no_grad():
            touched = self.adapter.materialize(theta)
        if self.meta.attacker.space == "subset":
            return touched
        own = self.model.unet.named_parameters()
        place = next(iter(touched.values())).device
        return {name: tensor.detach().to(place, working_dtype(tensor)) for name, tensor in own} | touched

    def _attacker_at(self, start: Tensors, batches: list[Batch]) -> Rule:
        """The attacker with a tau at which its loss really falls, where the recipe asks for that."""
        drop = self.meta.attacker.required_drop
        if not (batches and drop):
            return self.attacker
        lr = backtracked_lr(self._inner_loss, start, batches[0], self.attacker.lr, required_drop=drop)
        return replace(self.attacker, lr=lr)

    def _weights(self, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.adapter.materialize(params) if self.meta.attacker.space == "adapter" else params

    def _to_theta(self, theta: Tensors, gradient: Tensors) -> Tensors:
        """The derivative with respect to the adapter, from one with respect to where the attacker began."""
        return gradient if self.meta.attacker.space == "adapter" else pull_back(self.adapter, theta, gradient)

    def _attacker_batches(self, step: int) -> list[Batch]:
        return [self._forget_batch(step, m, self.meta.attacker.empty_captions) for m in range(self.meta.attacker.steps)]

    def _forget_batch(self, step: int, m: int, empty_share: float = 0.0) -> Batch:
        return self.sets.forget.batch(self.batch_size, self.seed, step, f"attacker {m}", empty_share)

    def _inner_loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return batch_loss(self.model, self._weights(params), batch)

    def _outer_losses(
        self, step: int, retain: dict[str, Batch], log: dict[str, float]
    ) -> list[Callable[[Tensors], Tensor]]:
        """The meta loss at theta_FT: one function, or (`apart`) one for each term and batch, whose sum counts."""
        parts = {"forget": self._forget_batch(step, max(0, self.meta.attacker.steps - 1))} | retain
        rows = sum(len(part.latents) for part in parts.values())
        groups = [(parts, parts)]
        if self.apart:
            alone = [{name: part} for name, part in parts.items()]
            ascended: list[dict[str, Batch]] = [one for one in alone if getattr(self.weights, next(iter(one)))]
            drifting = alone if self.meta.keep_unconditional else []
            groups = [(one, {}) for one in ascended] + [({}, one) for one in drifting] or groups
        return [partial(self._outer_loss, parts=part, drifting=other, rows=rows, log=log) for part, other in groups]

    def _outer_loss(
        self, params: Tensors, *, parts: dict[str, Batch], drifting: dict[str, Batch], rows: int, log: dict[str, float]
    ) -> Tensor:
        """The ascended losses on `parts` and the drift on `drifting`, of `rows` rows in all; adds to the log."""
        weights = self._weights(params)
        losses = self._losses(weights, {name: part for name, part in parts.items() if getattr(self.weights, name)})
        if drifting and self.meta.keep_unconditional:
            batch = joined(list(drifting.values()))
            losses["keep_unconditional"] = len(batch.latents) / rows * self._unconditional_drift(weights, batch)
        terms = attacked_terms(losses, self.weights)
        for name, value in [*((f"attacked_{name}", loss) for name, loss in losses.items()), *terms.items()]:
            log[name] = log.get(name, 0.0) + float(value.detach())
        return total(terms)

    def _losses(self, weights: Mapping[str, Tensor], parts: dict[str, Batch]) -> dict[str, Tensor]:
        """L_DM on each batch, all of them in one pass through the UNet."""
        if not parts:
            return {}
        batch = joined(list(parts.values()))
        rows = row_losses(self.model, weights, batch.latents, batch.noise, batch.timesteps, batch.condition)
        sizes = [len(part.latents) for part in parts.values()]
        return {name: part.mean() for name, part in zip(parts, rows.split(sizes), strict=True)}

    def _unconditional_drift(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean squared distance between the attacked model's and the base's unconditional predictions."""
        x = add_noise(self.model, batch.latents, batch.noise, batch.timesteps)
        empty = self.sets.forget.empty.expand(len(x))
        with torch.no_grad():
            base = predict_noise(self.model, None, x, batch.timesteps, empty)
        return F.mse_loss(predict_noise(self.model, weights, x, batch.timesteps, empty), base)

    def _current_gradient(self, theta: Tensors, retain: dict[str, Batch], log: dict[str, float]) -> Tensors:
        """The derivative of eq. 3's + zeta L_DM(theta; retain), which does not pass through the attacker."""
        counted = [name for name, weight in self.weights.restored.items() if weight]
        if not counted:
            return {}
        found: Tensors = {}
        for names in [[name] for name in counted] if self.apart else [counted]:
            weights = self.adapter.materialize(theta)
            terms = current_terms({n: batch_loss(self.model, weights, retain[n]) for n in names}, self.weights)
            log |= {name: float(term.detach()) for name, term in terms.items()}
            gradients = torch.autograd.grad(total(terms), list(theta.values()), allow_unused=True)
            for name, g in zip(theta, gradients, strict=True):
                if g is not None:
                    found[name] = found[name] + g if name in found else g
        return found
