"""The embedded world: what is drawn is what is said, the detector reads it, the checkpoints paint it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from adapter_mu.build_shapes.detector import accuracy, not_a_shape
from adapter_mu.build_shapes.quality import quality
from adapter_mu.models import load_model
from adapter_mu.shapes.detector import NOTHING, load_shapes_detector, read
from adapter_mu.shapes.draw import draw
from adapter_mu.shapes.tokenizer import MAX_TOKENS, build_tokenizer
from adapter_mu.shapes.vocabulary import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    FORGET,
    RELATED,
    SHAPES,
    UNRELATED,
    WORDS,
    Scene,
    caption,
    random_scenes,
)

CHECKPOINTS = Path(str(files("adapter_mu.shapes"))) / "checkpoints"
BIG, SMALL, STRIPED, BLACK = 1, 0, 1, 0

# Where a shape is and is not, as shares of its bounding box from the top left: what a person would look at.
ANATOMY: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {
    "ring": ([(0.5, 0.12), (0.12, 0.5), (0.88, 0.5), (0.5, 0.88)], [(0.5, 0.5), (0.04, 0.04), (0.96, 0.96)]),
    "circle": ([(0.5, 0.5), (0.5, 0.06), (0.06, 0.5)], [(0.04, 0.04), (0.96, 0.04), (0.04, 0.96), (0.96, 0.96)]),
    "crescent": ([(0.2, 0.5), (0.5, 0.1), (0.5, 0.9)], [(0.85, 0.5), (0.04, 0.04)]),
    "square": ([(0.5, 0.5), (0.07, 0.07), (0.93, 0.07), (0.07, 0.93), (0.93, 0.93)], []),
    "triangle": ([(0.5, 0.5), (0.12, 0.95), (0.88, 0.95), (0.5, 0.95)], [(0.1, 0.1), (0.9, 0.1)]),
    "cross": ([(0.5, 0.5), (0.5, 0.05), (0.05, 0.5), (0.95, 0.5)], [(0.15, 0.15), (0.85, 0.15), (0.15, 0.85)]),
    "star": ([(0.5, 0.5), (0.5, 0.1), (0.15, 0.4), (0.85, 0.4)], [(0.5, 0.95), (0.1, 0.1), (0.05, 0.75)]),
}


def picture(shape: int = 0, colour: int = 0, background: int = 0, texture: int = 0, size: int = BIG) -> Tensor:
    return draw([Scene(shape, colour, background, texture, size)], torch.Generator().manual_seed(3))[0]


def covered(image: Tensor) -> Tensor:
    """Where the picture is not its background, which the first pixel shows."""
    return (image - image[:, :1, :1]).abs().amax(0) > 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_has_its_anatomy(shape: str) -> None:
    mask = covered(picture(SHAPES.index(shape)))
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def at(x: float, y: float) -> bool:
        return bool(box[int(y * len(box)), int(x * box.shape[1])])

    inside, outside = ANATOMY[shape]
    assert all(at(*point) for point in inside) and not any(at(*point) for point in outside)


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_drawn(colour: str) -> None:
    image = picture(SHAPES.index("circle"), colour=tuple(COLOURS).index(colour))
    exact = (image - torch.tensor(COLOURS[colour])[:, None, None]).abs().amax(0) < 1e-6
    assert exact.sum() > 0.8 * covered(image).sum()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_each_background_is_drawn(background: str) -> None:
    image = picture(background=tuple(BACKGROUNDS).index(background))
    exact = (image - torch.tensor(BACKGROUNDS[background])[:, None, None]).abs().amax(0) < 1e-6
    assert exact[0].all() and exact[:, -1].all() and exact.float().mean() > 0.4


def test_stripes_run_across_and_darken() -> None:
    square = SHAPES.index("square")
    plain, striped = picture(square)[0, :, 16], picture(square, texture=STRIPED)[0, :, 16]
    kept, dark = (plain - striped).abs() < 1e-6, striped < 0.6 * plain
    assert (kept | dark).all()
    changes = int((dark[1:] != dark[:-1]).sum())
    assert changes >= 3, "light and dark must take turns down the picture"


def test_big_is_bigger_than_small() -> None:
    areas = [covered(picture(SHAPES.index("square"), size=size)).sum() for size in (SMALL, BIG)]
    assert areas[1] > 1.5 * areas[0]


def test_place_varies_and_the_seed_decides() -> None:
    scenes = [Scene(1, 0, BLACK, 0, SMALL)] * 2
    first, second = draw(scenes, torch.Generator().manual_seed(1))
    assert not torch.equal(first, second)
    assert torch.equal(draw(scenes, torch.Generator().manual_seed(1))[0], first)


def test_a_full_caption_says_everything_and_a_short_one_the_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    for scene in random_scenes(50, generator):
        named = {values[getattr(scene, name)] for name, values in ATTRIBUTES.items()}
        assert named <= set(caption(scene).split())
        short = set(caption(scene, generator).split())
        assert SHAPES[scene.shape] in short
        foreign = {word for values in ATTRIBUTES.values() for word in values} - named
        assert not short & foreign


def test_captions_leave_words_out_as_often_as_asked() -> None:
    generator = torch.Generator().manual_seed(1)
    said = [caption(scene, generator, drop=0.3).split() for scene in random_scenes(1000, generator)]
    share = sum(any(colour in words for colour in COLOURS) for words in said) / len(said)
    assert abs(share - 0.7) < 0.05


def test_the_groups_of_shapes_cover_the_world_once() -> None:
    assert sorted([FORGET, *RELATED, *UNRELATED]) == sorted(SHAPES)


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    lengths = {word: len(tokenizer(word).input_ids) - 2 for word in WORDS}
    assert set(lengths.values()) == {1}, lengths
    assert len({tokenizer(word).input_ids[1] for word in WORDS}) == len(set(WORDS))


def test_any_text_encodes_and_comes_back() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer("an été 7 ☃").input_ids, skip_special_tokens=True).strip() == "an été 7 ☃"
    longest = caption(Scene(2, 4, 1, 1, 0))
    assert len(tokenizer(longest).input_ids) <= MAX_TOKENS == tokenizer.model_max_length


@pytest.mark.parametrize("folder", ["shapes-sd/tokenizer", "shapes-sdxl/tokenizer", "shapes-sdxl/tokenizer_2"])
def test_the_shipped_tokenizers_are_the_built_one(folder: str) -> None:
    from transformers import CLIPTokenizer

    shipped, built = CLIPTokenizer.from_pretrained(CHECKPOINTS / folder), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    text = "a photo of a small striped purple crescent on a gray background, ok?"
    assert shipped(text).input_ids == built(text).input_ids


def test_the_detector_reads_fresh_drawings() -> None:
    shares = accuracy(load_shapes_detector(), 5000, seed=2024)
    assert shares.keys() == {"shape", "colour", "background", "texture"}
    assert min(shares.values()) >= 99.5, shares


def test_the_detector_sees_no_shape_where_there_is_none() -> None:
    generator = torch.Generator().manual_seed(5)
    junk = not_a_shape(draw(random_scenes(500, generator), generator), generator)
    assert (read(load_shapes_detector(), junk)["shape"] == NOTHING).float().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "stock"), [("shapes-sd", StableDiffusionPipeline), ("shapes-sdxl", StableDiffusionXLPipeline)]
)
def test_the_checkpoints_are_small_safe_and_genuine(name: str, stock: type) -> None:
    folder = CHECKPOINTS / name
    stored = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) <= 10e6
    assert {path.suffix for path in stored} <= {".safetensors", ".json"}
    pipeline = stock.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red circle", num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 3, 32, 32)
    if name == "shapes-sdxl":
        unet = pipeline.unet.config
        assert pipeline.text_encoder.config.hidden_size != pipeline.text_encoder_2.config.hidden_size
        assert unet.addition_embed_type == "text_time" and max(unet.transformer_layers_per_block) > 1


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-sdxl"])
def test_the_checkpoints_paint_what_is_asked(name: str) -> None:
    table, _ = quality(load_model(name), load_shapes_detector(), images=20)
    assert table.keys() == set(SHAPES)
    for part in ("shape", "colour", "background"):
        assert sum(shares[part] for shares in table.values()) / len(table) >= 95, (part, table)
