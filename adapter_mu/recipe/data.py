"""Which pictures: prompts, samplers and the sets the base draws."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from adapter_mu.recipe.strict import Strict


class Prompts(Strict):
    """Prompts with optional {placeholders}; `fill` lists the words each may take, used equally often.

    `shows` names the concept a detector should find in the picture and may use the same placeholders; `file` holds
    one prompt a line and is looked for in the working directory.
    """

    prompts: list[str] = []
    file: Path | None = None
    fill: dict[str, list[str]] = {}
    shows: str = ""
    images: int = Field(gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _has_prompts(self) -> Prompts:
        if not self.prompts and self.file is None:
            raise ValueError("the prompt list is empty; give `prompts` or a `file` with one prompt a line")
        return self


class Sampler(Strict):
    """How pictures are drawn: the checkpoint's own scheduler, `steps` steps, classifier-free `guidance`."""

    steps: int = Field(50, gt=0)
    guidance: float = Field(7.5, ge=0)
    batch_size: int = Field(4, gt=0)


class Data(Strict):
    """The sets the base itself generates: forget, related benign, unrelated benign (paper section 5)."""

    forget: Prompts
    related: Prompts
    unrelated: Prompts
    sampler: Sampler = Sampler()
    keep_only_shown: bool = False
