"""What a run's folder says about itself besides scores: recipe, versions, hashes, detector, prompts, command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adapter_mu.data.prompts import expand
from adapter_mu.errors import UserError
from adapter_mu.recipe import Prompts
from adapter_mu.report.rows import Results

SENSITIVE = ("nudenet", "safety", "laion", "q16", "nsfw")  # detectors whose finds nobody should meet unasked
SHORT = 300


@dataclass(frozen=True)
class Facts:
    """Everything a page says about how a run was made; empty where its folder does not say."""

    label: str
    command: str
    recipe_text: str
    recipe: Mapping[str, Any]
    environment: dict[str, str]
    hashes: dict[str, str]
    detector: dict[str, str]
    attacks: dict[str, dict[str, str]]
    concept_prompts: list[str]
    benign_prompts: list[str]
    sensitive: bool


def load_facts(run: Path, results: Results) -> Facts:
    """The facts of a run's folder.

    Raises:
        UserError: environment.json or recipe.yaml cannot be read.
    """
    text = _text(run / "recipe.yaml")
    recipe = _mapping(text, run / "recipe.yaml")
    evaluate = _part(recipe, "evaluate")
    detector = _detector(results.meta.get("detector") or evaluate.get("detector"))
    benign = _detector(results.meta.get("benign_detector") or evaluate.get("benign_detector"))
    return Facts(
        label=run.resolve().name,
        command=_command(results.meta.get("command"), bool(text)),
        recipe_text=text,
        recipe=recipe,
        environment=_flat(_json(run / "environment.json") or _part(results.meta, "environment")),
        hashes=_hashes(run, results),
        detector=detector | {f"benign {key}": value for key, value in benign.items()},
        attacks={name: _attack(attack) for name, attack in _part(recipe, "attacks").items()},
        concept_prompts=_prompts(evaluate.get("concept")),
        benign_prompts=_prompts(evaluate.get("benign")),
        sensitive=_sensitive(results.meta.get("sensitive"), detector.get("name", "")),
    )


def flattened(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A recipe as dotted keys and short values, to be compared with another."""
    return {key: value if len(value) <= SHORT else f"{value[:SHORT]} ..." for key, value in _flat(recipe).items()}


def _command(recorded: Any, has_recipe: bool) -> str:
    """The command as it was given, or the one that runs the recorded recipe again."""
    if isinstance(recorded, str) and recorded.strip():
        return recorded.strip()
    if isinstance(recorded, list) and recorded:
        return shlex.join(map(str, recorded))
    return "adapter-mu run recipe.yaml --out again" if has_recipe else ""


def _sensitive(said: Any, detector: str) -> bool:
    """As results.json says, else by the detector's name."""
    return said if isinstance(said, bool) else any(name in detector.lower().replace("-", "_") for name in SENSITIVE)


def _detector(said: Any) -> dict[str, str]:
    if isinstance(said, Mapping):
        return _flat(said)
    return {"name": str(said)} if said else {}


def _hashes(run: Path, results: Results) -> dict[str, str]:
    """Every hash that results.json records; of older runs, those that lie beside their scores."""
    found = {key: value for key, value in _flat(results.meta).items() if key.endswith("hash")}
    if "models" in results.meta:
        return found
    scored = {folder.name: _json(folder / "scored_model.json") for folder in sorted((run / "arms").glob("*"))}
    return found | {f"models.{arm}.unet_hash": str(said["unet_hash"]) for arm, said in scored.items() if said}


def _attack(attack: Any) -> dict[str, str]:
    """An attack's settings without its prompts."""
    flat = _flat(attack) if isinstance(attack, Mapping) else {"": str(attack)}
    hidden = ("prompts", "fill.", "benign.prompts")
    return {k: v for k, v in flat.items() if v != "None" and not any(f".{h}" in f".{k}" for h in hidden)}


def _prompts(spec: Any) -> list[str]:
    """The prompts of the pictures in order; none where the recipe's part cannot be read any more."""
    try:
        return [prompt.text for prompt in expand(Prompts.model_validate(spec))] if spec else []
    except (ValidationError, UserError):
        return []


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{path} is not valid YAML; restore it or delete it, then ask again.") from None
    return content if isinstance(content, dict) else {}


def _part(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = content.get(key)
    return part if isinstance(part, Mapping) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run the recipe again.") from None
    return content if isinstance(content, dict) else {path.stem: content}


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level, keys joined by dots."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
