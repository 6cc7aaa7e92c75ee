"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """A recipe and its overrides."""
    parser.add_argument("recipe", help="a shipped recipe's name (adapter-mu ls) or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes, for example train.steps=100")


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """A run's folder that exists."""
    parser.add_argument("folder", type=Path, help="the folder of a run")


def add_model(parser: argparse.ArgumentParser) -> None:
    """A model to load."""
    parser.add_argument("model", help="an embedded name, a diffusers folder, a .safetensors file or a hub id")
    parser.add_argument("--config", help="a diffusers folder with the architecture of a single file")
