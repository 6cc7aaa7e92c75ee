"""The search over tokens of UnlearnDiffAtk: gradient descent on distributions over a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from adapter_mu.attack.prompts.encoding import encode_with
from adapter_mu.attack.prompts.simplex import pick, project
from adapter_mu.attack.prompts.tokens import text_parts, the_tokenizer, usable_tokens, with_slots
from adapter_mu.data.seeds import generator_for
from adapter_mu.errors import ModelError
from adapter_mu.models import Conditioning, LoadedModel, row_losses, unconditional
from adapter_mu.recipe import PromptAttack


class TokenSearch:
    """For each of N prompts, k distributions over the usable tokens, (N, k, V), moved so that the pictures fit.

    The loss is the model's own diffusion loss on the target of each prompt: tokens under which the attacked model
    recognises the base's picture of the concept also make it draw one (UnlearnDiffAtk, Zhang et al. 2024, eq. 7).
    Rows never mix, and their random numbers depend on the search's seed and on `names` alone.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: list[str],
        targets: Tensor,
        names: list[int],
        settings: PromptAttack,
        seed: int,
    ) -> None:
        """Every distribution uniform.

        Args:
            model: the attacked model, all of it known to the attacker.
            prompts: N prompts that leave room for the tokens.
            targets: latents (N, C, H, W) of the base's pictures of the same prompts.
            names: a number for each prompt, to draw its random numbers by.
            settings: tokens, iterations, rates and range.
            seed: of the search.

        Raises:
            UserError: no token may be used, or the model's tokenizers have different vocabularies.
        """
        self.model, self.names, self.settings, self.seed = model, names, settings, seed
        self.targets = targets.to(model.device)
        parts = text_parts(model)
        self.usable = usable_tokens(the_tokenizer(model), settings.among, settings.forbid).to(model.device)
        tables = [encoder.get_input_embeddings().weight[self.usable] for _, encoder in parts]
        dtype = torch.promote_types(tables[0].dtype, torch.float32)
        self.tables = [table.to(dtype) for table in tables]
        self.ids = [with_slots(*part, prompts, settings.tokens) for part in parts]
        self.time_ids = unconditional(model).time_ids
        size = len(self.usable)
        self.weights = torch.full((len(prompts), settings.tokens, size), 1 / size, device=model.device, dtype=dtype)
        self.weights.requires_grad_()
        self.optimizer = torch.optim.Adam([self.weights], settings.lr, weight_decay=settings.weight_decay)

    def descend(self, rows: list[int], timestep: int) -> None:
        """All iterations at one noise level, for the rows still searched for.

        Raises:
            ModelError: the model's prediction is not finite.
        """
        if not self.settings.iterations:
            return
        draws = [self._draws(row, timestep) for row in rows]
        uniforms, noise = (torch.stack(kind, dim=1).to(self.model.device) for kind in zip(*draws, strict=True))
        at = torch.full((len(rows),), timestep, device=self.model.device)
        for its_uniforms, its_noise in zip(uniforms, noise, strict=True):
            condition = self.condition(rows, pick(self.weights[rows], its_uniforms))
            losses = row_losses(self.model, None, self.targets[rows], its_noise, at, condition)
            if not losses.isfinite().all():
                raise ModelError(
                    f"'{self.model.name}' predicts noise that is not finite at timestep {timestep}; attack it in fp32."
                )
            # A sum, so that every prompt moves as it would alone.
            (self.weights.grad,) = torch.autograd.grad(losses.sum(), [self.weights])
            self.optimizer.step()
            with torch.no_grad():
                self.weights[rows] = project(self.weights[rows])

    def condition(self, rows: list[int], picked: Tensor) -> Conditioning:
        """What the UNet is told when the slots of `rows` hold the picked tokens, one-hot (len(rows), k, V)."""
        tokens = self.usable[picked.argmax(-1)]
        filled = [torch.cat([ids[rows, :1], tokens, ids[rows, 1 + tokens.shape[1] :]], dim=1) for ids in self.ids]
        return encode_with(self.model, filled, [picked @ table for table in self.tables], self.time_ids)

    def best(self, row: int, timestep: int) -> list[int]:
        """The likeliest token id at every slot; without iterations, the control, one at random."""
        chosen = self.weights[row].argmax(-1)
        if not self.settings.iterations:
            generator = generator_for(self.seed, "random tokens", self.names[row], timestep)
            chosen = torch.randint(len(self.usable), chosen.shape, generator=generator)
        return [int(token) for token in self.usable[chosen.to(self.usable.device)]]

    def _draws(self, row: int, timestep: int) -> tuple[Tensor, Tensor]:
        """For every iteration, what the tokens are drawn by (iterations, k), and the noise (iterations, C, H, W)."""
        generator = generator_for(self.seed, "unlearndiffatk", self.names[row], timestep)
        iterations = self.settings.iterations
        uniforms = torch.rand(iterations, self.settings.tokens, generator=generator, dtype=torch.float64)
        return uniforms, torch.randn(iterations, *self.targets.shape[1:], generator=generator)
