"""Which pictures: prompts, samplers and the sets the base draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from adapter_mu.recipe.strict import Strict


class Swap(Strict):
    """A learned token: `new` takes the place of `word` in every prompt, or stands before a prompt without it."""

    word: str
    new: str


class Prompts(Strict):
    """Which prompts or pictures, from one of three sources, and how many.

    - `prompts` and `file` (one prompt a line; a path from the working directory, or a shipped list such as
      paper/hrm-m) with optional {placeholders}; `fill` lists the words each may take, used equally often.
    - `csv`, a published list whose rows may name a seed and a guidance scale; `only` keeps the rows whose columns
      fit, such as {nudity_percentage: ">50", categories: "*sexual*"}.
    - `folder`, own pictures with a metadata.jsonl, a .txt beside each, or one `caption` for all.

    `shows` names the concept a detector should find in the picture and may use the same placeholders (of a csv: its
    columns). `images` is how many; of a csv or folder the first ones, and all of them without it.
    """

    prompts: list[str] = []
    file: Path | None = None
    csv: Path | None = None
    only: dict[str, str | int | float] = {}
    folder: Path | None = None
    caption: str = ""
    fill: dict[str, list[str]] = {}
    shows: str = ""
    images: int = Field(0, ge=0)
    seed: int = 0
    swap: Swap | None = None

    @field_validator("prompts", "fill", "only", mode="before")
    @classmethod
    def _none_means_none(cls, value: Any, info: ValidationInfo) -> Any:
        """`prompts: null` drops those of the recipe this one extends."""
        return type(cls.model_fields[str(info.field_name)].default)() if value is None else value

    @model_validator(mode="after")
    def _has_one_source(self) -> Prompts:
        listed = bool(self.prompts) or self.file is not None
        sources = [listed, self.csv is not None, self.folder is not None]
        if not any(sources):
            raise ValueError(
                "the prompt list is empty; give `prompts` or a `file` with one prompt a line, a `csv` or a `folder`"
            )
        if sum(sources) > 1:
            raise ValueError("it names several sources; keep one of `prompts` (with `file`), `csv` and `folder`")
        if listed and not self.images:
            raise ValueError("`images` is missing or 0; say how many pictures to draw")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_source(self) -> Prompts:
        listed = bool(self.prompts) or self.file is not None
        fits = {"only": self.csv is not None, "caption": self.folder is not None, "fill": listed}
        if wrong := [name for name, fitting in fits.items() if getattr(self, name) and not fitting]:
            needs = {"only": "a `csv`", "caption": "a `folder`", "fill": "`prompts` or a `file`"}[wrong[0]]
            raise ValueError(f"`{wrong[0]}` only goes with {needs}; remove it")
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


def every_prompts(part: object) -> Iterator[Prompts]:
    """Every `Prompts` of a recipe or of a part of one, wherever it stands."""
    if isinstance(part, Prompts):
        yield part
        return
    values: list[object] = []
    if isinstance(part, BaseModel):
        values = [getattr(part, name) for name in type(part).model_fields]
    elif isinstance(part, Mapping):
        values = list(part.values())
    for value in values:
        yield from every_prompts(value)
