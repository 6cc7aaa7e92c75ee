"""What a drawing can show, and the captions that say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHAPES = ("ring", "circle", "crescent", "square", "triangle", "cross", "star")
FORGET, RELATED, UNRELATED = SHAPES[0], SHAPES[1:3], SHAPES[3:]
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.25),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.25, 0.80),
}
BACKGROUNDS = {"black": (0.05, 0.05, 0.05), "gray": (0.50, 0.50, 0.50), "white": (0.95, 0.95, 0.95)}
TEXTURES = ("plain", "striped")
SIZES = ("small", "big")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "texture": TEXTURES,
    "size": SIZES,
}
FILLER = ("a", "an", "photo", "of", "on", "the", "background", "picture", "image", "with", "and", "drawing")
WORDS = FILLER + tuple(word for values in ATTRIBUTES.values() for word in values)
OPENINGS = ("a photo of a ", "a picture of a ", "a drawing of a ", "an image of a ", "a ", "")


@dataclass(frozen=True)
class Scene:
    """One drawing's attributes, each an index into its tuple in `ATTRIBUTES`."""

    shape: int
    colour: int
    background: int
    texture: int
    size: int


def random_scenes(count: int, generator: torch.Generator, shapes: tuple[str, ...] = SHAPES) -> list[Scene]:
    """`count` scenes, every attribute uniform, shapes drawn from `shapes`."""

    def draw(size: int) -> list[int]:
        return torch.randint(size, (count,), generator=generator).tolist()

    columns = [[SHAPES.index(shapes[i]) for i in draw(len(shapes))]]
    columns += [draw(len(values)) for name, values in ATTRIBUTES.items() if name != "shape"]
    return [Scene(*row) for row in zip(*columns, strict=True)]


def caption(scene: Scene, generator: torch.Generator | None = None, drop: float = 0.3) -> str:
    """The scene in words; with a generator, each attribute but the shape is left out with chance `drop`."""
    chance = torch.ones(5) if generator is None else torch.rand(5, generator=generator)
    opening = 0 if generator is None else int(torch.randint(len(OPENINGS), (1,), generator=generator))
    words = [
        word
        for keep, word in (
            (chance[0] > drop, SIZES[scene.size]),
            (chance[1] > drop, TEXTURES[scene.texture]),
            (chance[2] > drop, tuple(COLOURS)[scene.colour]),
        )
        if keep
    ]
    text = OPENINGS[opening] + " ".join([*words, SHAPES[scene.shape]])
    if chance[3] > drop:
        text += f" on a {tuple(BACKGROUNDS)[scene.background]} background"
    return text
