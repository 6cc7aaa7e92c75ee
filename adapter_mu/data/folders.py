"""Folders of own pictures: which they are, their captions, and how they are brought to a model's size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Prompts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = "metadata.jsonl"
SMALLEST_SHARE = 0.5  # of the model's side; enlarging more than twofold teaches blur


def captioned(spec: Prompts) -> list[tuple[Path, str]]:
    """The pictures of `spec.folder` with their captions, in the order of their names; the first `spec.images`.

    Captions come from metadata.jsonl ({"file_name", "text"} a line, Hugging Face's imagefolder format), else from a
    .txt beside the picture, else from `spec.caption`.

    Raises:
        RecipeError: no folder, no pictures, fewer than `images`, or a picture without a caption.
    """
    assert spec.folder is not None
    folder = spec.folder.expanduser()
    if not folder.is_dir():
        raise RecipeError(f"The picture folder {spec.folder} does not exist; correct the path in the recipe.")
    known = _metadata(folder)
    names: dict[str, str | None] = {**known} or {
        path.name: None for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES
    }
    if not names:
        raise RecipeError(f"{spec.folder} holds no pictures ({', '.join(SUFFIXES)}); add some or correct the path.")
    if spec.images > len(names):
        raise RecipeError(f"{spec.folder} holds {len(names)} pictures, fewer than `images: {spec.images}`; lower it.")
    chosen = list(names.items())[: spec.images or None]
    return [(folder / name, _caption(folder / name, text, spec)) for name, text in chosen]


def _metadata(folder: Path) -> dict[str, str]:
    file = folder / METADATA
    if not file.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {str(row["file_name"]): str(row["text"]) for row in rows}
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f'{file} is wrong; write {{"file_name": ..., "text": ...}} on every line.') from None


def _caption(picture: Path, known: str | None, spec: Prompts) -> str:
    beside = picture.with_suffix(".txt")
    if known is not None:
        return known
    if beside.is_file():
        return " ".join(beside.read_text(encoding="utf-8-sig", errors="replace").split())
    if not spec.caption:
        raise RecipeError(f"{picture} has no caption; give a {beside.name} beside it, a {METADATA}, or `caption`.")
    return spec.caption


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, turned as its camera says, transparency on white; RecipeError when it cannot be read."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecipeError(f"Picture {path} cannot be read ({error}); remove it or save it again as PNG.") from None


def fit_picture(picture: Image.Image, side: int) -> Image.Image:
    """The shorter side resized to `side`, then the centre square cut out, as kohya's and diffusers' trainers do."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def check_folder(spec: Prompts, side: int) -> None:
    """Every picture is there and large enough for a model of `side` pixels; only headers are read.

    Raises:
        RecipeError: for the first that is not.
    """
    for path, _ in captioned(spec) if spec.folder else ():
        try:
            with Image.open(path) as picture:
                shorter = min(picture.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise RecipeError(f"Picture {path} cannot be read ({reason}); remove it or save it again.") from None
        if shorter < SMALLEST_SHARE * side:
            raise RecipeError(
                f"Picture {path} has only {shorter} pixels on its shorter side, and the model wants {side}; "
                f"use pictures of at least {round(SMALLEST_SHARE * side)}."
            )


def as_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W) in [0, 1]."""
    width, height = picture.size
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.reshape(height, width, 3).permute(2, 0, 1).float() / 255
