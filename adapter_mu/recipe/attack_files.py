"""Attack entries made whole: the file they `use`, the picture sets they name, and sweeps over learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_mu.errors import RecipeError
from adapter_mu.recipe.merging import merged
from adapter_mu.recipe.yaml_files import read_mapping, recipe_folder

Entry = dict[str, Any]
SETS = ("data", "mixed_with", "prior")
SAMPLED = ("data", "mixed_with")  # what `images` limits


def attack_path(name_or_path: str, settings: str = "") -> Path:
    """The file of a shipped attack or suite ("lora_r16"; that of `settings`, such as "shapes", first), or of a path.

    Raises:
        RecipeError: there is none.
    """
    shipped = recipe_folder() / "attacks"
    for path in (shipped / settings / f"{name_or_path}.yaml", shipped / f"{name_or_path}.yaml", Path(name_or_path)):
        if path.is_file():
            return path
    raise NoSuchFile(name_or_path)


class NoSuchFile(RecipeError):
    """There is no attack file of that name; `others` says what there is."""

    def __init__(self, name: str) -> None:
        self.others = f"shipped attack files are {', '.join(attack_names())}"
        super().__init__(f"There is no attack file '{name}'; give a YAML file, or one of these: {self.others}.")


def attack_names() -> list[str]:
    """The shipped attacks and suites by name."""
    folder = recipe_folder() / "attacks"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def read_attack(name_or_path: str, settings: str = "", seen: tuple[Path, ...] = ()) -> Entry:
    """The entry that an attack file holds, on top of the file it `extends`."""
    path = attack_path(name_or_path, settings)
    if path.resolve() in seen:
        raise RecipeError(f"Attack file {path} extends itself, directly or through others; remove one `extends`.")
    content = read_mapping(path, "Attack file")
    if "attacks" in content:
        raise RecipeError(f"'{name_or_path}' is a suite, a list of attacks; name it with --suite.")
    content.pop("description", None)
    parent = content.pop("extends", None)
    return merged(read_attack(str(parent), seen=(*seen, path.resolve())), content) if parent else content


def read_suite(name_or_path: str, settings: str = "") -> dict[str, Entry]:
    """A suite: the entries under `attacks`, by label; RecipeError when the file has none."""
    attacks = read_mapping(attack_path(name_or_path, settings), "Attack suite").get("attacks")
    if not isinstance(attacks, dict) or not attacks:
        raise RecipeError(f"'{name_or_path}' is no attack suite: it has no `attacks`; name it with --attack instead.")
    return attacks


def complete(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a recipe, its attack entries made whole; what is not an entry is left for the schema to refuse."""
    content, attacks = _without_aliases(content), content.get("attacks")
    if not isinstance(attacks, Mapping):
        return content
    whole: dict[str, Any] = {}
    for label, entry in attacks.items():
        if not isinstance(entry, Mapping):
            whole[label] = entry
            continue
        entry = _with_file(dict(entry), str(content.get("attack_settings", "")))
        whole |= _swept(label, _with_caption(_with_sets(label, entry, content), content))
    return {**content, "attacks": whole}


def _without_aliases(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sets of `attack_data` that are another set's name replaced by that set."""
    own = content.get("attack_data")
    if not isinstance(own, Mapping):
        return dict(content)
    real = {**content, "attack_data": {name: value for name, value in own.items() if not isinstance(value, str)}}
    named = {
        name: _set_named(value, f"attack_data.{name}", real) for name, value in own.items() if isinstance(value, str)
    }
    return {**real, "attack_data": real["attack_data"] | named}


def _with_file(entry: Entry, settings: str) -> Entry:
    used = entry.pop("use", None)
    return merged(read_attack(str(used), settings), entry) if used is not None else entry


def _with_sets(label: str, entry: Entry, content: Mapping[str, Any]) -> Entry:
    """Names of picture sets replaced by the sets, and `images` handed on to them."""
    for key in SETS:
        if isinstance(entry.get(key), str):
            entry[key] = _set_named(entry[key], f"attacks.{label}.{key}", content)
    images = entry.pop("images", None)
    for key in SAMPLED:
        if images is not None and isinstance(entry.get(key), Mapping):
            entry[key] = {**entry[key], "images": images}
    return entry


def _set_named(name: str, place: str, content: Mapping[str, Any]) -> Any:
    """Of the recipe's `attack_data`, else the one that its attack of that name has, else of its `data`."""
    parts = (content.get(part) for part in ("attack_data", "attacks", "data"))
    own, attacks, data = (part if isinstance(part, Mapping) else {} for part in parts)
    sets = {key: data[key] for key in ("forget", "related", "unrelated") if key in data}
    sets |= {key: value["data"] for key, value in attacks.items() if _has_set(value)}
    sets |= own
    if name not in sets:
        raise RecipeError(f"`{place}` is '{name}', but the recipe has only {', '.join(sets)}; add attack_data.{name}.")
    return sets[name]


def _has_set(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("data"), Mapping)


def _with_caption(entry: Entry, content: Mapping[str, Any]) -> Entry:
    if isinstance(entry.get("caption"), str):
        entry["caption"] = entry["caption"].replace("{concept}", str(content.get("concept", "")))
    return entry


def _swept(label: str, entry: Entry) -> dict[str, Entry]:
    """An attack for each learning rate; several are told apart by it, as in `lora-lr1e-05`."""
    rates = entry.get("lr")
    if not isinstance(rates, list):
        return {label: entry}
    if len(rates) < 2:
        return {label: entry | {"lr": rates[0] if rates else None}}
    return {f"{label}-lr{_short(rate)}": entry | {"lr": rate} for rate in rates}


def _short(rate: Any) -> str:
    try:
        return f"{float(rate):g}"
    except (TypeError, ValueError):
        return str(rate)
