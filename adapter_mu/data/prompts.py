"""Prompt lists with placeholders, expanded evenly and reproducibly."""

from __future__ import annotations

import string
from dataclasses import dataclass

import torch

from adapter_mu.data.seeds import generator_for
from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Prompts


@dataclass(frozen=True)
class Prompt:
    """A prompt and the concept its picture should show ("" when nothing is checked)."""

    text: str
    shows: str


def placeholders(template: str) -> set[str]:
    """The names in {braces}; RecipeError when the braces do not match."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise RecipeError(f"Prompt '{template}' has unmatched braces ({error}); double a brace to keep it.") from None


def read_templates(spec: Prompts) -> list[str]:
    """The prompts of the recipe and of its file, one a line; blank lines and lines that start with # are skipped."""
    templates = list(spec.prompts)
    if spec.file is not None:
        if not spec.file.is_file():
            raise RecipeError(f"Prompt file {spec.file} does not exist; correct the path in the recipe.")
        lines = (line.strip() for line in spec.file.read_text(encoding="utf-8").splitlines())
        templates += [line for line in lines if line and not line.startswith("#")]
    if not templates:
        raise RecipeError(f"Prompt file {spec.file} is empty; write one prompt a line.")
    missing = {n for t in [*templates, spec.shows] for n in placeholders(t)} - spec.fill.keys()
    if missing:
        raise RecipeError(f"Prompts use {{{sorted(missing)[0]}}} but `fill` does not say what it may be; add it.")
    empty = [name for name, words in spec.fill.items() if not words]
    if empty:
        raise RecipeError(f"`fill.{empty[0]}` is an empty list; give at least one word.")
    return templates


def _evenly(words: list[str], count: int, generator: torch.Generator) -> list[str]:
    """`count` words in random order, each used equally often (up to one)."""
    order = torch.randperm(count, generator=generator).tolist()
    repeated = [words[i % len(words)] for i in range(count)]
    return [repeated[i] for i in order]


def expand(spec: Prompts) -> list[Prompt]:
    """`spec.images` prompts: templates and fillers each used equally often, combined at random by `spec.seed`."""
    templates = _evenly(read_templates(spec), spec.images, generator_for(spec.seed, "templates"))
    columns = {
        name: _evenly(words, spec.images, generator_for(spec.seed, "fill", name)) for name, words in spec.fill.items()
    }
    rows = [{name: column[i] for name, column in columns.items()} for i in range(spec.images)]
    return [Prompt(t.format(**row), spec.shows.format(**row)) for t, row in zip(templates, rows, strict=True)]
