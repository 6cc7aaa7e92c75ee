"""Prompt lists with placeholders, expanded evenly and reproducibly."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

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
    """The names in {braces}; RecipeError when the braces do not match or hold more than a name."""
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise RecipeError(f"Prompt '{template}' has unmatched braces ({error}); double a brace to keep it.") from None
    for name, form, conversion in fields:
        if form or conversion or not str(name).isidentifier():
            raise RecipeError(f"Prompt '{template}' has braces around more than a name; double a brace to keep it.")
    return {str(name) for name, _, _ in fields}


def read_templates(spec: Prompts) -> list[str]:
    """The prompts of the recipe and of its file, one a line; blank lines and lines that start with # are skipped."""
    templates = list(spec.prompts)
    if spec.file is not None:
        if not spec.file.is_file():
            raise RecipeError(f"Prompt file {spec.file} does not exist; correct the path in the recipe.")
        templates += _lines(spec.file)
    if not templates:
        raise RecipeError(f"Prompt file {spec.file} is empty; write one prompt a line.")
    missing = {n for t in [*templates, spec.shows] for n in placeholders(t)} - spec.fill.keys()
    if missing:
        raise RecipeError(f"Prompts use {{{sorted(missing)[0]}}} but `fill` does not say what it may be; add it.")
    empty = [name for name, words in spec.fill.items() if not words]
    if empty:
        raise RecipeError(f"`fill.{empty[0]}` is an empty list; give at least one word.")
    return templates


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise RecipeError(f"Prompt file {file} is not UTF-8 text; save it as plain text.") from None
    return [line for line in lines if line and not line.startswith("#")]


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
