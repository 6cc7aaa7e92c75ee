"""The outer loop of Algorithm 1: unlearning loss, retain loss and meta gradient on the adapter, resumable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from adapter_mu.data.cache import write_text
from adapter_mu.errors import UserError
from adapter_mu.live import stage
from adapter_mu.methods import GradientMethod, RememberingMethod
from adapter_mu.models import LoadedModel
from adapter_mu.params import Adapter, load_optimizer_state, optimizer_state, outer_optimizer
from adapter_mu.params.files import read_tensors, write_tensors
from adapter_mu.progress import progress
from adapter_mu.recipe import Recipe
from adapter_mu.simulate import MetaObjective, Sets, Tensors, batch_loss

OnStep = Callable[[int, dict[str, float]], None]
LossTerm = tuple[str, float, Callable[[Mapping[str, Tensor]], Tensor]]  # name, weight, the loss at UNet weights


class Trainer:
    """Trains one adapter by one recipe; without a `method` the model has unlearned already.

    `state_file` holds what a resumed run needs to end in the same bytes, `log_file` every step's terms by name, one
    JSON object a line.
    """

    def __init__(
        self,
        model: LoadedModel,
        method: GradientMethod | None,
        adapter: Adapter,
        sets: Sets,
        recipe: Recipe,
        *,
        state_file: Path,
        log_file: Path,
    ) -> None:
        self.model, self.method, self.adapter, self.sets, self.recipe = model, method, adapter, sets, recipe
        self.theta = adapter.parameters()
        self.optimizer = self._new_optimizer()
        train = recipe.train
        self.meta = (
            MetaObjective(
                *(model, adapter, sets, recipe.meta, train.batch_size, recipe.seed),
                chunk=train.memory.attention_chunk,
                apart=train.checkpointing,
            )
            if recipe.meta
            else None
        )
        self.state_file, self.log_file = state_file, log_file

    def _new_optimizer(self) -> torch.optim.Optimizer:
        memory, lr = self.recipe.train.memory, self.recipe.train.lr
        there = torch.device("cpu") if memory.optimizer_on == "cpu" else self.model.device
        moments_on = None if memory.optimizer_on in (None, memory.states) else there
        return outer_optimizer(self.theta, lr, eight_bit=memory.optimizer == "adam8bit", moments_on=moments_on)

    def run(self, on_step: OnStep | None = None) -> None:
        """All remaining steps; Ctrl-C or a kill loses at most `save_every` of them.

        Raises:
            UserError: a gradient is not finite; the state of the last good step is kept.
        """
        steps, done = self.recipe.train.steps, self._resume()
        bar = progress(range(done, steps), "training", initial=done, total=steps)
        self._cut_log(done)
        with self.log_file.open("a", encoding="utf-8") as lines:
            for step in bar:
                terms = self.step(step)
                lines.write(json.dumps({"step": step} | terms) + "\n")
                lines.flush()
                bar.set_postfix(
                    {k: f"{terms[k]:.3f}" for k in ("unlearn", "attacked_forget") if k in terms}, refresh=False
                )
                if on_step:
                    on_step(step, terms)
                if (step + 1) % self.recipe.train.save_every == 0 or step + 1 == steps:
                    self._save(step + 1)

    def step(self, step: int) -> dict[str, float]:
        """One outer step; returns every term of the objective by name. UserError if the gradient is not finite."""
        gradient, terms, scale = self._ascent(step)
        between: dict[str, float] = {}  # how the unlearning gradient lies to the meta gradient
        for name, weight, loss in self._losses(step):
            with stage("method"):
                own, terms[name] = self._gradient(loss)
            if name == "unlearn" and self.meta:
                between = alignment(own, gradient)
            for key, tensor in gradient.items():
                tensor.mul_(scale).add_(own[key], alpha=weight)
            scale = 1.0
        for name, tensor in self.theta.items():
            tensor.grad = gradient[name].mul_(scale).to(tensor.dtype)
        terms["gradient_norm"] = float(
            torch.nn.utils.clip_grad_norm_(self.theta.values(), self.recipe.train.max_grad_norm)
        )
        if not math.isfinite(terms["gradient_norm"]):
            self._stop(step, terms)
        with stage("optimizer"):
            self.optimizer.step()
        self.optimizer.zero_grad()
        if isinstance(self.method, RememberingMethod):
            self.method.after_step(self.theta)
        return terms | between

    def _ascent(self, step: int) -> tuple[Tensors, dict[str, float], float]:
        """The meta gradient, its terms, and what it counts: gamma_2, after its norm is clipped; zeros without `meta`.

        It comes first, when no other gradient takes memory.
        """
        if not self.meta:
            return {name: torch.zeros_like(tensor) for name, tensor in self.theta.items()}, {}, 1.0
        ascent, terms = self.meta.gradient(step)
        size = float(torch.nn.utils.get_total_norm(ascent.values()))
        scale = self.meta.meta.weight * min(1.0, self.meta.meta.max_grad_norm / (size + 1e-12))
        return ascent, terms | self._conflict(step) | {"meta_gradient_norm": size}, scale

    def _conflict(self, step: int) -> dict[str, float]:
        """The cosine between the gradients of L_DM on D_forget and on related pictures (paper, Figure 6), if asked."""
        if not (self.meta and self.meta.meta.log_conflict):
            return {}
        sets, size, seed = self.sets, self.recipe.train.batch_size, self.recipe.seed
        batches = [part.batch(size, seed, step, "conflict") for part in (sets.forget, sets.related)]
        forget, related = (self._gradient(partial(batch_loss, self.model, batch=batch))[0] for batch in batches)
        return {"forget_related_cosine": alignment(forget, related)["gradient_cosine"]}

    def _stop(self, step: int, terms: dict[str, float]) -> NoReturn:
        if step:
            self._save(step)
        wrong = [name for name, value in terms.items() if not math.isfinite(value)]
        raise UserError(
            f"Training stopped before step {step}, where {', '.join(wrong)} would be infinite or not a number"
            " (all that went before is kept); lower train.lr or meta.weight, or set meta.bound."
        )

    def _losses(self, step: int) -> Iterator[LossTerm]:
        """The unlearning loss with gamma_1 and the retain losses, each to be differentiated by itself."""
        train, seed = self.recipe.train, self.recipe.seed
        if self.method:
            loss = partial(self.method.loss, self.model, batch_size=train.batch_size, seed=seed, step=step)
            yield "unlearn", train.unlearn_weight, loss
        batches = self.sets.retain_batches(train.batch_size, seed, step, train.empty_captions)
        for name, weight in (("related", train.retain_related), ("unrelated", train.retain_unrelated)):
            if weight:
                yield f"retain_{name}", weight, partial(batch_loss, self.model, batch=batches[name])

    def _gradient(self, loss: Callable[[Mapping[str, Tensor]], Tensor]) -> tuple[Tensors, float]:
        """One term's gradient, zero where it does not depend on theta, and its value; its graph is gone after."""
        value = loss(self.adapter.materialize(self.theta))
        gradients = torch.autograd.grad(value, list(self.theta.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(self.theta, gradients, strict=True)), float(value.detach())

    def _save(self, step: int) -> None:
        tensors = {f"theta.{name}": tensor for name, tensor in self.theta.items()}
        tensors |= optimizer_state(self.optimizer, self.theta)
        if isinstance(self.method, RememberingMethod):
            tensors |= {f"method.{name}": tensor for name, tensor in self.method.state().items()}
        write_tensors(self.state_file, tensors | {"step": torch.tensor(step)}, {})

    def _resume(self) -> int:
        """Load the last saved state into the adapter and the optimizer; the number of steps done."""
        if not self.state_file.is_file():
            return 0
        saved, _ = read_tensors(self.state_file)
        for name, tensor in self.theta.items():
            with torch.no_grad():
                tensor.copy_(saved[f"theta.{name}"])
        load_optimizer_state(self.optimizer, self.theta, saved)
        if isinstance(self.method, RememberingMethod):
            own = {name.removeprefix("method."): t for name, t in saved.items() if name.startswith("method.")}
            self.method.load_state(own)
        return int(saved["step"])

    def _cut_log(self, done: int) -> None:
        """Keep the lines of the first `done` steps: those of lost steps are written again."""
        lines = self.log_file.read_text(encoding="utf-8").splitlines(keepends=True) if self.log_file.is_file() else []
        write_text(self.log_file, "".join(lines[:done]))


def alignment(unlearning: Tensors, meta: Tensors) -> dict[str, float]:
    """The inner product of the two gradients over theta, as they are before any weight, and the cosine between them."""
    inner = sum(float((unlearning[name] * tensor).sum(dtype=torch.float64)) for name, tensor in meta.items())
    sizes = [float(torch.nn.utils.get_total_norm(tensors.values())) for tensors in (unlearning, meta)]
    return {"gradient_alignment": inner, "gradient_cosine": inner / (sizes[0] * sizes[1] + 1e-12)}
