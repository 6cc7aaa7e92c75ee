"""Strips are cut back into the very pictures they were made of, small enough for one page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapter_mu.evaluate.pictures import save_strip
from adapter_mu.report.tiles import FORMS, cut, encode, fitting_form


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def as_image(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy())


def decoded(source: str) -> Image.Image:
    kind, _, data = source.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128])
@pytest.mark.parametrize(("concept", "benign"), [(12, 12), (4, 4), (10, 3), (3, 10)])
def test_every_picture_comes_back_pixel_by_pixel(side: int, concept: int, benign: int, tmp_path: Path) -> None:
    lines = [pictures(concept, side), pictures(benign, side, 1)]
    save_strip(lines, tmp_path / "strip.png")
    for found, line in zip(cut(tmp_path / "strip.png", concept), lines, strict=True):
        assert len(found) == min(10, len(line))
        assert all(tile.tobytes() == as_image(p).tobytes() for tile, p in zip(found, line, strict=False))


def test_small_pictures_enter_without_loss_and_large_ones_are_reduced() -> None:
    small, large = as_image(pictures(1, 32)[0]), as_image(pictures(1, 512)[0])
    assert decoded(encode(small, 96)).tobytes() == small.tobytes()
    assert decoded(encode(large, 160)).size == (160, 160)


def test_the_form_shrinks_with_the_number_of_strips(tmp_path: Path) -> None:
    save_strip([pictures(10, 96), pictures(10, 96, 1)], tmp_path / "strip.png")
    strip = tmp_path / "strip.png"
    few, many, far_too_many = (fitting_form([strip] * n, budget=1_000_000) for n in (2, 10, 5000))
    assert (few.side, few.shown) == FORMS[0]
    assert (many.side, many.shown) in FORMS[1:-1]
    assert (far_too_many.side, far_too_many.shown) == FORMS[-1]
