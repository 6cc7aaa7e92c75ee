"""Prompt lists: even, reproducible, and refused in one sentence when they cannot be expanded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adapter_mu.data.prompts import expand
from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Prompts

WORDS = {"colour": ["red", "green", "blue"], "shape": ["ring", "star"]}


def spec(*prompts: str, **settings: Any) -> Prompts:
    return Prompts(prompts=list(prompts), **({"images": 10, "fill": WORDS} | settings))


@pytest.mark.parametrize("images", [1, 5, 12, 31])
def test_prompts_and_fillers_are_used_equally_often(images: int) -> None:
    found = expand(spec("{colour} {shape} one", "{colour} {shape} two", "{colour} {shape} three", images=images))
    assert len(found) == images
    for column, size in enumerate((3, 2, 3)):
        counts = Counter(prompt.text.split()[column] for prompt in found)
        assert max(counts.values()) - (min(counts.values()) if len(counts) == size else 0) <= 1


def test_words_are_not_tied_to_each_other() -> None:
    pairs = {prompt.text for prompt in expand(spec("{colour} {shape}", images=60))}
    assert len(pairs) == 6


def test_the_draw_never_changes() -> None:
    """Cached sets, published numbers and resumed runs rest on it."""
    drawn = expand(spec("a {colour} {shape}", "the {shape}", shows="{shape}", images=5, seed=3))
    assert [p.text for p in drawn] == ["the star", "the ring", "a green ring", "a red star", "a blue ring"]
    assert [p.shows for p in drawn] == ["star", "ring", "ring", "star", "ring"]
    assert expand(spec("a {colour} {shape}", "the {shape}", shows="{shape}", images=5, seed=4)) != drawn


def test_a_new_filler_does_not_disturb_the_others() -> None:
    more = WORDS | {"size": ["big", "small"]}
    assert expand(spec("a {colour} {shape}", fill=more)) == expand(spec("a {colour} {shape}"))


def test_shows_is_filled_like_the_prompt() -> None:
    assert all(prompt.text == f"a {prompt.shows}" for prompt in expand(spec("a {shape}", shows="{shape}")))
    assert {prompt.shows for prompt in expand(spec("a {shape}"))} == {""}


def test_doubled_braces_are_kept() -> None:
    assert expand(spec("{{{shape}}}", images=1))[0].text in ("{ring}", "{star}")


@pytest.mark.parametrize("prompt", ["a {shape", "a shape}", "{", "a {shape!}"])
def test_unmatched_braces_are_refused(prompt: str) -> None:
    with pytest.raises(RecipeError, match="unmatched braces.*double a brace"):
        expand(spec(prompt))


@pytest.mark.parametrize("prompt", ["{}", "{0}", "{a.b}", "{shape:>9}", "{shape!r}", "{ring|star}", "{shape[0]}"])
def test_braces_around_more_than_a_name_are_refused(prompt: str) -> None:
    with pytest.raises(RecipeError, match="more than a name"):
        expand(spec(prompt))


@pytest.mark.parametrize("settings", [{"shows": "{size}"}, {"prompts": ["a {size} {shape}"]}])
def test_a_missing_filler_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"\{size\} but `fill` does not say"):
        expand(Prompts(**({"prompts": ["a {shape}"], "fill": WORDS, "images": 2} | settings)))


def test_an_empty_filler_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`fill\.size` is an empty list"):
        expand(spec("a {size}", fill={"size": []}))


def test_a_file_adds_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# a comment\n\n  a {shape}  \r\nthe {shape}\n", encoding="utf-8")
    texts = {prompt.text.split()[0] for prompt in expand(spec("one {shape}", file=file))}
    assert texts == {"one", "a", "the"}
    assert {prompt.text.split()[0] for prompt in expand(spec(file=file))} == {"a", "the"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "does not exist"), (b"# nothing\n\n", "is empty"), (b"\xff\xfe\xfa", "is not UTF-8 text")],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=sentence):
        expand(spec(file=file))
