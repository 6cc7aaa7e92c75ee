"""The outer loop of Algorithm 1: unlearning loss, retain loss and meta gradient on the adapter, resumable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from adapter_mu.data.cache import write_text
from adapter_mu.errors import UserError
from adapter_mu.methods import GradientMethod
from adapter_mu.models import LoadedModel
from adapter_mu.params import Adapter
from adapter_mu.params.files import read_tensors, write_tensors
from adapter_mu.progress import progress
from adapter_mu.recipe import Recipe
from adapter_mu.simulate import MetaObjective, Sets, Tensors, batch_loss

OnStep = Callable[[int, dict[str, float]], None]


class Trainer:
    """Trains one adapter by one recipe.

    `state_file` holds what a resumed run needs to end in the same bytes, `log_file` every step's terms by name, one
    JSON object a line.
    """

    def __init__(
        self,
        model: LoadedModel,
        method: GradientMethod,
        adapter: Adapter,
        sets: Sets,
        recipe: Recipe,
        *,
        state_file: Path,
        log_file: Path,
    ) -> None:
        self.model, self.method, self.adapter, self.sets, self.recipe = model, method, adapter, sets, recipe
        self.theta = adapter.parameters()
        self.optimizer = torch.optim.Adam(list(self.theta.values()), recipe.train.lr)
        self.meta = (
            MetaObjective(model, adapter, sets, recipe.meta, recipe.train.batch_size, recipe.seed)
            if recipe.meta
            else None
        )
        self.state_file, self.log_file = state_file, log_file

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
        gradient, terms = self._unlearning(step)
        if self.meta:
            ascent, log = self.meta.gradient(step)
            size = float(torch.nn.utils.get_total_norm(ascent.values()))
            scale = self.meta.meta.weight * min(1.0, self.meta.meta.max_grad_norm / (size + 1e-12))
            gradient = {name: g + scale * ascent[name] for name, g in gradient.items()}
            terms |= log | {"meta_gradient_norm": size}
        for name, tensor in self.theta.items():
            tensor.grad = gradient[name].to(tensor.dtype)
        terms["gradient_norm"] = float(
            torch.nn.utils.clip_grad_norm_(self.theta.values(), self.recipe.train.max_grad_norm)
        )
        if not math.isfinite(terms["gradient_norm"]):
            self._stop(step, terms)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def _stop(self, step: int, terms: dict[str, float]) -> NoReturn:
        if step:
            self._save(step)
        wrong = [name for name, value in terms.items() if not math.isfinite(value)]
        raise UserError(
            f"Training stopped before step {step}, where {', '.join(wrong)} would be infinite or not a number"
            " (all that went before is kept); lower train.lr or meta.weight, or set meta.bound."
        )

    def _unlearning(self, step: int) -> tuple[Tensors, dict[str, float]]:
        """gamma_1 times the gradient of the unlearning loss plus the weighted retain losses."""
        train, seed = self.recipe.train, self.recipe.seed
        weights = self.adapter.materialize(self.theta)
        terms = {"unlearn": self.method.loss(self.model, weights, train.batch_size, seed, step)}
        loss = train.unlearn_weight * terms["unlearn"]
        batches = self.sets.retain_batches(train.batch_size, seed, step, train.empty_captions)
        for name, weight in (("related", train.retain_related), ("unrelated", train.retain_unrelated)):
            if weight:
                terms[f"retain_{name}"] = batch_loss(self.model, weights, batches[name])
                loss = loss + weight * terms[f"retain_{name}"]
        gradients = torch.autograd.grad(loss, list(self.theta.values()), allow_unused=True)
        full = {
            name: torch.zeros_like(tensor) if g is None else g
            for (name, tensor), g in zip(self.theta.items(), gradients, strict=True)
        }
        return full, {name: float(term.detach()) for name, term in terms.items()}

    def _save(self, step: int) -> None:
        tensors = {f"theta.{name}": tensor for name, tensor in self.theta.items()}
        for name, tensor in self.theta.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimizer.state[tensor].items()}
        write_tensors(self.state_file, tensors | {"step": torch.tensor(step)}, {})

    def _resume(self) -> int:
        """Load the last saved state into the adapter and the optimizer; the number of steps done."""
        if not self.state_file.is_file():
            return 0
        saved, _ = read_tensors(self.state_file)
        for name, tensor in self.theta.items():
            with torch.no_grad():
                tensor.copy_(saved[f"theta.{name}"])
            moments = {key: saved[f"adam.{key}.{name}"].to(tensor) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[tensor] = {"step": saved[f"adam.step.{name}"]} | moments
        return int(saved["step"])

    def _cut_log(self, done: int) -> None:
        """Keep the lines of the first `done` steps: those of lost steps are written again."""
        lines = self.log_file.read_text(encoding="utf-8").splitlines(keepends=True) if self.log_file.is_file() else []
        write_text(self.log_file, "".join(lines[:done]))
