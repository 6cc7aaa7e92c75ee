"""CSV lists of the field: their columns, filters, seeds and guidance scales, down to the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_model

from adapter_mu.data.prompts import AGAIN, Prompt, expand
from adapter_mu.data.sampling import PublishedSeed, batches, decode, guidance_of, sample_latents, seeds_of
from adapter_mu.errors import RecipeError
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Prompts

UNLEARNDIFFATK = """\
Unnamed: 0,prompt,categories,hard,nudity_percentage,evaluation_seed,evaluation_guidance,sd_model,case_number
0,"a ring, {with} braces ","shocking, sexual",1,50.0,4261553411,13,sd-v1-4,0
40,a star,harassment,0,0.0,3900018758,7.5,sd-v1-4,40
42,a cross,sexual,0,90.0,1386314900,7,sd-v1-4,42
"""
I2P = "prompt,nudity_percentage,sd_seed,sd_guidance_scale\na ring,60.0,7,13\na star,10.0,8,\n"
COCO = "image_id,caption\n17,A man rides a horse.\n18,Two cats.\n"


def spec(folder: Path, content: str | bytes, **settings: Any) -> Prompts:
    path = folder / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Prompts(csv=path, **settings)


def test_the_columns_of_unlearndiffatk(tmp_path: Path) -> None:
    found = expand(spec(tmp_path, "\ufeff" + UNLEARNDIFFATK, shows="nudity"))
    assert found == [
        Prompt("a ring, {with} braces", "nudity", 4261553411, 13.0),
        Prompt("a star", "nudity", 3900018758, 7.5),
        Prompt("a cross", "nudity", 1386314900, 7.0),
    ]


def test_the_columns_of_i2p_with_an_empty_cell(tmp_path: Path) -> None:
    assert expand(spec(tmp_path, I2P)) == [Prompt("a ring", "", 7, 13.0), Prompt("a star", "", 8, None)]


def test_captions_without_seeds(tmp_path: Path) -> None:
    assert expand(spec(tmp_path, COCO)) == [Prompt("A man rides a horse.", ""), Prompt("Two cats.", "")]


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ({"nudity_percentage": ">49"}, [0, 42]),
        ({"nudity_percentage": ">50"}, [42]),
        ({"nudity_percentage": ">=50"}, [0, 42]),
        ({"nudity_percentage": "<50"}, [40]),
        ({"nudity_percentage": "<=50"}, [0, 40]),
        ({"hard": 1}, [0]),
        ({"hard": "0"}, [40, 42]),
        ({"evaluation_guidance": 7}, [42]),
        ({"categories": "*sexual*"}, [0, 42]),
        ({"categories": "sexual"}, [42]),
        ({"categories": "*sexual*", "hard": 0}, [42]),
    ],
)
def test_only_keeps_the_rows_that_fit(tmp_path: Path, only: dict[str, Any], left: list[int]) -> None:
    texts = {0: "a ring, {with} braces", 40: "a star", 42: "a cross"}
    assert [p.text for p in expand(spec(tmp_path, UNLEARNDIFFATK, only=only))] == [texts[case] for case in left]


def test_fewer_images_are_the_first_rows_and_more_are_drawn_with_other_seeds(tmp_path: Path) -> None:
    assert [p.text for p in expand(spec(tmp_path, I2P, images=1))] == ["a ring"]
    found = expand(spec(tmp_path, I2P, images=5))
    assert [p.text for p in found] == ["a ring", "a star", "a ring", "a star", "a ring"]
    assert [p.seed for p in found] == [7, 8, 7 + AGAIN, 8 + AGAIN, 7 + 2 * AGAIN]


def test_shows_may_be_a_column(tmp_path: Path) -> None:
    found = expand(spec(tmp_path, "prompt,class\na red ring,ring\na star,star\n", shows="{class}"))
    assert [p.shows for p in found] == ["ring", "star"]


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        (UNLEARNDIFFATK, {"only": {"nudity": ">50"}}, "no column 'nudity' for `only`; it has Unnamed: 0, prompt"),
        (UNLEARNDIFFATK, {"only": {"hard": 2}}, "No row of .* passes `only`"),
        (UNLEARNDIFFATK, {"shows": "{klass}"}, "{klass}, which is no column"),
        ("a,b\n1,2\n", {}, "no column prompt, caption, text; it has a, b"),
        ("prompt,sd_seed\nx,1\ny,one\n", {}, "row 3: 'sd_seed' is 'one', not a number"),
        ("prompt\n", {}, "no rows below its header"),
        (b"prompt\n\xff\xfe\n", {}, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        expand(spec(tmp_path, content, **settings))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"nudity\.csv does not exist"):
        expand(Prompts(csv=Path("nudity.csv")))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"csv": "a.csv", "prompts": ["x"]}, "several sources"),
        ({"csv": "a.csv", "folder": "b"}, "several sources"),
        ({"prompts": ["x"]}, "`images` is missing"),
        ({"prompts": ["x"], "images": 1, "only": {"a": 1}}, "`only` only goes with a `csv`"),
        ({"csv": "a.csv", "fill": {"a": ["b"]}}, "`fill` only goes with `prompts` or a `file`"),
        ({"csv": "a.csv", "caption": "x"}, "`caption` only goes with a `folder`"),
        ({}, "prompt list is empty"),
    ],
)
def test_sources_are_not_mixed(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Prompts.model_validate(settings)


# Seeds and guidance reach the sampler


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("sd")


def test_seeds_and_guidance_fall_back_to_the_recipes() -> None:
    prompts = [Prompt("a", "", 5, 13.0), Prompt("b", "")]
    assert seeds_of(prompts, 100) == [5, 101] and guidance_of(prompts, 7.5) == [13.0, 7.5]
    assert [type(seed) for seed in seeds_of(prompts, 100)] == [PublishedSeed, int]


@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler"])
def test_a_published_seed_gives_the_picture_that_plain_diffusers_gives(scheduler: str | None) -> None:
    import diffusers

    model = tiny_model("sd")
    if scheduler:
        kind = getattr(diffusers, scheduler)
        model.pipeline.scheduler = kind.from_config(model.pipeline.scheduler.config)
    plain = model.pipeline(
        "a ring",
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(4261553411),
        output_type="np",
    ).images[0]
    settings = {"steps": 3, "guidance": 2.0, "batch_size": 1}
    ours = sample_latents(model, ["a ring"], [PublishedSeed(4261553411)], **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(decode(model, ours, 1)[0].permute(1, 2, 0), torch.from_numpy(plain))
    hashed = sample_latents(model, ["a ring"], [4261553411], **settings)  # type: ignore[arg-type]
    assert not torch.allclose(hashed, ours, atol=1e-3)


def test_rows_of_one_guidance_are_drawn_together_and_come_back_in_order(model: LoadedModel) -> None:
    scales = [2.0, 5.0, 2.0, 1.0, 2.0]
    assert list(batches(scales, 2)) == [[0, 2], [4], [1], [3]]
    prompts, seeds = ["a ring", "a star", "a cross", "a ring", "a star"], [1, 2, 3, 4, 5]
    together = sample_latents(model, prompts, seeds, steps=2, guidance=scales, batch_size=2)
    alone = [
        sample_latents(model, [p], [s], steps=2, guidance=g, batch_size=1)
        for p, s, g in zip(prompts, seeds, scales, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
