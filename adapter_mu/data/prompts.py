"""Prompts of a recipe: lists with placeholders, expanded evenly and reproducibly; CSV rows; captions of a folder."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapter_mu.data.csv_rows import csv_rows
from adapter_mu.data.folders import captioned
from adapter_mu.data.seeds import generator_for
from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Prompts, Swap, recipe_folder

AGAIN = 1_000_003  # added to a row's seed each time the whole CSV is drawn again


@dataclass(frozen=True)
class Prompt:
    """A prompt and the concept its picture should show ("" when nothing is checked).

    `seed` and `guidance` are those that the row of a published CSV asks for.
    """

    text: str
    shows: str
    seed: int | None = None
    guidance: float | None = None


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
        templates += _lines(prompt_file(spec.file))
    if not templates:
        raise RecipeError(f"Prompt file {spec.file} is empty; write one prompt a line.")
    missing = {n for t in [*templates, spec.shows] for n in placeholders(t)} - spec.fill.keys()
    if missing:
        raise RecipeError(f"Prompts use {{{sorted(missing)[0]}}} but `fill` does not say what it may be; add it.")
    empty = [name for name, words in spec.fill.items() if not words]
    if empty:
        raise RecipeError(f"`fill.{empty[0]}` is an empty list; give at least one word.")
    return templates


def prompt_file(path: Path) -> Path:
    """A file from the working directory or a shipped list by name ("paper/hrm-m"); RecipeError for neither."""
    for file in (path, recipe_folder() / "prompts" / f"{path}.txt"):
        if file.is_file():
            return file
    raise RecipeError(
        f"Prompt file {path} does not exist; correct the path, or name one of {', '.join(shipped_prompts())}."
    )


def shipped_prompts() -> list[str]:
    """The names of the lists that come with adapter_mu."""
    folder = recipe_folder() / "prompts"
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.txt"))


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
    """The prompts of `spec`, one a picture, with `spec.swap` applied to the text.

    Of a list `spec.images` prompts: templates and fillers each used equally often, combined at random by `spec.seed`.
    Of a CSV its rows, of a folder its captions, in order.

    Raises:
        RecipeError: a file is missing or cannot be used; one sentence says which and why.
    """
    prompts = _expanded(spec)
    return [replace(p, text=swapped(p.text, spec.swap)) for p in prompts] if spec.swap else prompts


def swapped(text: str, swap: Swap) -> str:
    """The prompt with the learned token in the place of its word (a whole word, in either case), else before it."""
    found = re.compile(rf"\b{re.escape(swap.word)}\b", re.IGNORECASE)
    return found.sub(lambda _: swap.new, text) if found.search(text) else f"{swap.new} {text}"


def _expanded(spec: Prompts) -> list[Prompt]:
    if spec.csv is not None:
        return _of_rows(spec)
    if spec.folder is not None:
        return [Prompt(caption, spec.shows) for _, caption in captioned(spec)]
    templates = _evenly(read_templates(spec), spec.images, generator_for(spec.seed, "templates"))
    columns = {
        name: _evenly(words, spec.images, generator_for(spec.seed, "fill", name)) for name, words in spec.fill.items()
    }
    rows = [{name: column[i] for name, column in columns.items()} for i in range(spec.images)]
    return [Prompt(t.format(**row), spec.shows.format(**row)) for t, row in zip(templates, rows, strict=True)]


def _of_rows(spec: Prompts) -> list[Prompt]:
    """One prompt a row, in order; more images than rows draw every row again with another seed."""
    rows = csv_rows(spec)
    if missing := placeholders(spec.shows) - rows[0].columns.keys():
        raise RecipeError(f"`shows` uses {{{sorted(missing)[0]}}}, which is no column of {spec.csv}; correct it.")
    prompts = []
    for i in range(spec.images or len(rows)):
        again, row = divmod(i, len(rows))
        seed = rows[row].seed
        seed = None if seed is None else seed + again * AGAIN
        prompts.append(Prompt(rows[row].text, spec.shows.format(**rows[row].columns), seed, rows[row].guidance))
    return prompts
