"""Own pictures: captions from three places, the size rule, what is refused, and their latents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_pipelines import tiny_model

from adapter_mu.data.folders import as_tensor, captioned, check_folder, fit_picture, open_picture
from adapter_mu.data.prompts import expand
from adapter_mu.data.sets import encoded_set, picture_set
from adapter_mu.errors import RecipeError
from adapter_mu.models import LoadedModel
from adapter_mu.recipe import Prompts, Sampler

SIDE = 16  # of the tiny pipelines


def paint(path: Path, size: tuple[int, int] = (20, 16), colour: Any = (200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("b.png", "a.jpg", "c.webp")):
        paint(tmp_path / "own" / name, colour=(60 * i, 100, 200))
    return tmp_path / "own"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("sd")


def test_captions_from_metadata_decide_order_and_choice(folder: Path) -> None:
    rows = [{"file_name": "c.webp", "text": "a {ring}"}, {"file_name": "a.jpg", "text": "a star"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert captioned(Prompts(folder=folder)) == [(folder / "c.webp", "a {ring}"), (folder / "a.jpg", "a star")]
    assert [p.text for p in expand(Prompts(folder=folder, shows="ring"))] == ["a {ring}", "a star"]


def test_captions_beside_the_pictures_and_one_for_the_rest(folder: Path) -> None:
    (folder / "a.txt").write_text("\ufeffa star,\n very small \n", encoding="utf-8")
    found = captioned(Prompts(folder=folder, caption="a ring"))
    assert [(path.name, text) for path, text in found] == [
        ("a.jpg", "a star, very small"),
        ("b.png", "a ring"),
        ("c.webp", "a ring"),
    ]
    assert [path.name for path, _ in captioned(Prompts(folder=folder, caption="a ring", images=2))] == [
        "a.jpg",
        "b.png",
    ]


@pytest.mark.parametrize(
    ("prepare", "settings", "sentence"),
    [
        (lambda f: f.rename(f.with_name("gone")), {}, "picture folder .*own does not exist"),
        (lambda f: [p.unlink() for p in f.iterdir()], {}, "holds no pictures"),
        (lambda f: None, {}, r"a\.jpg has no caption; give a a\.txt beside it"),
        (lambda f: None, {"caption": "x", "images": 4}, "holds 3 pictures, fewer than `images: 4`"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "a.jpg"}'), {}, r"metadata\.jsonl is wrong"),
        (lambda f: (f / "metadata.jsonl").write_text("{"), {}, r"metadata\.jsonl is wrong"),
    ],
)
def test_what_is_wrong_with_a_folder(
    folder: Path, prepare: Callable[[Path], Any], settings: dict[str, Any], sentence: str
) -> None:
    prepare(folder)
    with pytest.raises(RecipeError, match=sentence):
        captioned(Prompts(folder=folder, **settings))


def test_unreadable_missing_and_tiny_pictures_are_refused_by_their_headers(folder: Path) -> None:
    spec = Prompts(folder=folder, caption="x")
    check_folder(spec, 32)  # 16 pixels are half of 32
    with pytest.raises(RecipeError, match=r"a\.jpg has only 16 pixels on its shorter side, and the model wants 33"):
        check_folder(spec, 33)
    (folder / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"a\.jpg cannot be read"):
        check_folder(spec, SIDE)
    (folder / "metadata.jsonl").write_text('{"file_name": "z.png", "text": "x"}\n')
    with pytest.raises(RecipeError, match=r"z\.png cannot be read \(there is no such file\)"):
        check_folder(Prompts(folder=folder), SIDE)


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 20), "red")
    picture.paste((0, 0, 255), (20, 0, 40, 20))  # the centre square
    found = as_tensor(fit_picture(picture, 10))
    assert found.shape == (3, 10, 10)
    blue = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 6, 6)
    torch.testing.assert_close(found[:, 2:8, 2:8], blue, atol=0.01, rtol=0)
    tall = as_tensor(fit_picture(picture.transpose(Image.Transpose.ROTATE_90), 40))
    assert tall.shape == (3, 40, 40)


def test_pictures_are_turned_and_laid_on_white(tmp_path: Path) -> None:
    turned = Image.new("RGB", (20, 10), "white")
    turned.paste("black", (0, 0, 10, 10))
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_picture(tmp_path / "turned.jpg")
    assert upright.size == (10, 20) and upright.getpixel((5, 2)) < (60, 60, 60) < upright.getpixel((5, 17))
    assert open_picture(paint(tmp_path / "clear.png", colour=(0, 0, 0, 0))).getpixel((3, 3)) == (255, 255, 255)
    assert open_picture(paint(tmp_path / "grey.png", colour=(9, 9, 9))).mode == "RGB"
    (tmp_path / "bad.png").write_bytes((tmp_path / "grey.png").read_bytes()[:60])
    with pytest.raises(RecipeError, match=r"bad\.png cannot be read"):
        open_picture(tmp_path / "bad.png")


def test_latents_are_the_vaes_own(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    spec = Prompts(folder=folder, caption="a ring")
    found = encoded_set(model, spec, tmp_path / "cache")
    pixels = torch.stack([as_tensor(fit_picture(open_picture(p), SIDE)) for p, _ in captioned(spec)])
    with torch.no_grad():
        mean = model.vae.encode(2 * pixels - 1).latent_dist.mean * model.vae.config.scaling_factor
    torch.testing.assert_close(found.latents, mean, atol=1e-5, rtol=1e-4)
    assert found.captions == ["a ring"] * 3 and len(found.condition) == 3
    assert found.batch(4, 0, 0, "x").latents.shape == (4, *mean.shape[1:])


def test_pictures_are_encoded_once_until_they_change(
    model: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, spec = tmp_path / "cache", Prompts(folder=folder, caption="a ring")
    first = picture_set(model, "base", spec, Sampler(), cache)
    with monkeypatch.context() as patch:
        patch.setattr("adapter_mu.data.sets.encode", None)  # encoding again would fail
        again = picture_set(model, "base", spec.model_copy(update={"caption": "a star"}), Sampler(), cache)
        assert torch.equal(first.latents, again.latents) and again.captions == ["a star"] * 3
    paint(folder / "b.png", colour=(1, 2, 3))
    assert not torch.equal(picture_set(model, "base", spec, Sampler(), cache).latents, first.latents)
    assert len(list(cache.iterdir())) == 2


def test_a_judge_has_no_say_in_own_pictures(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    spec = Prompts(folder=folder, caption="a ring", shows="ring")
    found = picture_set(model, "base", spec, Sampler(), tmp_path, lambda pictures, shows: pytest.fail("asked"))
    assert len(found.latents) == 3
