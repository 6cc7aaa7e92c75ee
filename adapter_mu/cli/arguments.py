"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """A recipe and its overrides."""
    parser.add_argument("recipe", help="a shipped recipe's name (adapter-mu ls) or a YAML file")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Changes to the recipe; `main` lets them stand after options too."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes, for example train.steps=100")


def add_model(parser: argparse.ArgumentParser) -> None:
    """A model to load."""
    parser.add_argument("model", help="an embedded name, a diffusers folder, a .safetensors file or a hub id")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """What a single file does not say about itself."""
    parser.add_argument("--config", help="a diffusers folder with the architecture of a single file")


def add_adapter_base(parser: argparse.ArgumentParser) -> None:
    """The base that an adapter belongs to."""
    parser.add_argument("--base", required=True, help="the model it belongs to")
    add_config(parser)


def add_adapter_form(parser: argparse.ArgumentParser) -> None:
    """An adapter file for other tools."""
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write; it must not exist")
    parser.add_argument(
        "--format",
        choices=("peft", "kohya"),
        default="kohya",
        help="kohya (default): ComfyUI, A1111, sd-scripts, diffusers; peft: diffusers with its metadata",
    )


def add_dtype(parser: argparse.ArgumentParser, default: str | None, what: str) -> None:
    """Precision of what is written."""
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default=default, help=what)
