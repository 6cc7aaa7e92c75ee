"""The scores of an arm, kept as they are measured."""

from __future__ import annotations

import json
from dataclasses import asdict

from adapter_mu.data.cache import fingerprint, write_text
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.pictures import save_strip
from adapter_mu.evaluate.scores import score_row
from adapter_mu.evaluate.statistics import row_from
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Evaluate, Swap
from adapter_mu.stages.setting import Run


class Scores:
    """The rows of one arm, saved as they are measured, so that a resumed run measures only what is missing."""

    def __init__(self, run: Run, arm: str, evaluate: Evaluate) -> None:
        self.run, self.arm, self.evaluate = run, arm, evaluate
        self.file = run.arm_folder(arm) / "scores.jsonl"
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        self.rows = [row_from(json.loads(line)) for line in lines]

    def belong_to(self, model: LoadedModel) -> None:
        """Record whose scores these are; RecipeError when they were measured on other weights."""
        own, record = fingerprint(model.unet), self.file.with_name("scored_model.json")
        if not record.is_file():
            write_text(record, json.dumps({"source": model.source, "unet_hash": own}, indent=2))
        elif json.loads(record.read_text(encoding="utf-8"))["unet_hash"] != own:
            raise RecipeError(
                f"{self.run.folder} has scores of another model named '{self.arm}'; choose another name or --out."
            )

    def has(self, attack: str, step: int, guidance: float | None = None, *, seed: int = 0) -> bool:
        """Whether the cell of this attack seed is measured, at one guidance scale or at all of them."""
        wanted = set(self.evaluate.guidance) if guidance is None else {guidance}
        cell = (attack, step, seed)
        return wanted <= {row.guidance for row in self.rows if (row.attack, row.step, row.seed) == cell}

    def measure(
        self,
        model: LoadedModel,
        attack: str,
        step: int,
        *,
        seed: int = 0,
        strip: bool = True,
        swap: Swap | None = None,
    ) -> None:
        """Measure the cell at every guidance scale that is missing; keep a `strip` of its pictures.

        `swap` puts a learned token into the concept's prompts.
        """
        assert self.run.detector is not None
        asked = self.evaluate.concept.model_copy(update={"swap": swap})
        evaluate = self.evaluate.model_copy(update={"concept": asked})
        for guidance in self.evaluate.guidance:
            if self.has(attack, step, guidance, seed=seed):
                continue
            row, concept, benign = score_row(
                model,
                evaluate,
                self.run.detector,
                arm=self.arm,
                attack=attack,
                step=step,
                guidance=guidance,
                seed=seed,
            )
            if strip:
                picture = self.run.folder / "pictures" / f"{self.arm}_{attack}_{step}_{guidance:g}.png"
                save_strip([concept.pictures, benign.pictures], picture)
            self.rows.append(row)
            write_text(self.file, "".join(json.dumps(asdict(r)) + "\n" for r in self.rows))
