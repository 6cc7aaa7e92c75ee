"""Picture sets on disk: drawn or imported one by one, so that a stopped build continues where it was.

A set is a folder in Hugging Face's imagefolder format: pictures and a metadata.jsonl of {"file_name", "text"}. A
picture's name is a hash of all that made it, so a build finds what it has and draws the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from adapter_mu.data.cache import content_key, file_hash, write_picture, write_text
from adapter_mu.data.contact_sheet import contact_sheet
from adapter_mu.data.folders import METADATA, captioned, fit_picture, open_picture
from adapter_mu.data.painter import Drawing, Painter
from adapter_mu.data.prompts import Prompt, expand
from adapter_mu.data.sampling import batches
from adapter_mu.errors import RecipeError
from adapter_mu.progress import progress
from adapter_mu.recipe import Prompts


@dataclass(frozen=True)
class Item:
    """A picture of a set: the key it is filed under and its caption."""

    key: str
    text: str


class Source(Protocol):
    """Where a set's pictures come from."""

    @property
    def items(self) -> Sequence[Item]:
        """All of them, in order."""

    def make(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """The pictures at `wanted`, in any order, each with its place."""


class Drawn:
    """Pictures that a painter draws of prompts.

    A picture's seed is the one its row of a CSV asks for; else it follows from `spec.seed`, the prompt and how often
    the prompt came before, so that asking for more pictures keeps those there are.
    """

    def __init__(self, painter: Painter, spec: Prompts, how: Drawing, batch_size: int) -> None:
        self.painter, self.how, self.batch_size = painter, how, batch_size
        self.prompts = expand(spec)
        self.seeds = _seeds(self.prompts, spec.seed)
        self.scales = [how.guidance if p.guidance is None else p.guidance for p in self.prompts]
        self.items = [
            Item(content_key(painter=painter.identity, text=p.text, seed=seed, how=asdict(self._how(i))), p.text)
            for i, (p, seed) in enumerate(zip(self.prompts, self.seeds, strict=True))
        ]

    def _how(self, place: int) -> Drawing:
        return replace(self.how, guidance=self.scales[place])

    def make(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """Draw them, pictures of one guidance scale together."""
        for part in batches([self.scales[i] for i in wanted], self.batch_size):
            places = [wanted[k] for k in part]
            texts, seeds = [self.prompts[i].text for i in places], [self.seeds[i] for i in places]
            yield from zip(places, self.painter.paint(texts, seeds, self._how(places[0])), strict=True)


def _seeds(prompts: Sequence[Prompt], seed: int) -> list[int]:
    before: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        own = int(content_key(seed=seed, text=prompt.text, again=before[prompt.text])[:8], 16)
        seeds.append(own if prompt.seed is None else prompt.seed)
        before[prompt.text] += 1
    return seeds


class Imported:
    """The user's own pictures, resized and cut to squares of `side` pixels."""

    def __init__(self, spec: Prompts, side: int) -> None:
        self.found, self.side = captioned(spec), side
        self.items = [Item(content_key(file=file_hash(path), side=side), text) for path, text in self.found]

    def make(self, wanted: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """Read, resize, cut."""
        for place in wanted:
            yield place, fit_picture(open_picture(self.found[place][0]), self.side)


def check_set(source: Source, folder: Path) -> None:
    """RecipeError when the folder holds pictures that are not of this set; nothing of the user's is ever deleted."""
    keys = {item.key for item in source.items}
    foreign = sorted(path.name for path in folder.glob("*.png") if path.stem not in keys)
    if foreign:
        raise RecipeError(
            f"{folder} holds pictures of another build, such as {foreign[0]}; choose another --out or delete it."
        )


def build_set(source: Source, folder: Path) -> Path:
    """Make what is missing of a set in `folder`, then its metadata.jsonl and, beside it, its contact sheet.

    Returns:
        The contact sheet, `folder` with .png.

    Raises:
        RecipeError: the folder holds another set.
    """
    check_set(source, folder)
    items = source.items
    missing = [i for i, item in enumerate(items) if not _file(folder, item).is_file()]
    missing = list({items[i].key: i for i in missing}.values())  # the same picture twice is made once
    for place, picture in progress(source.make(missing), folder.name, total=len(missing), leave=False):
        write_picture(_file(folder, items[place]), picture)
    lines = [json.dumps({"file_name": _file(folder, i).name, "text": i.text}, ensure_ascii=False) for i in items]
    write_text(folder / METADATA, "".join(line + "\n" for line in dict.fromkeys(lines)))
    sheet = folder.with_name(f"{folder.name}.png")
    contact_sheet([(_file(folder, item), item.text) for item in items], sheet)
    return sheet


def _file(folder: Path, item: Item) -> Path:
    return folder / f"{item.key}.png"
