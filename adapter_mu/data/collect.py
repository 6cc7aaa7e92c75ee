"""Which sets a build makes, from a recipe, a concept or named sources, and the build of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from adapter_mu.data.build import Drawn, Imported, Source, build_set, check_set
from adapter_mu.data.concepts import ConceptKind, concept_sets
from adapter_mu.data.folders import check_folder
from adapter_mu.data.painter import Drawing, Painter
from adapter_mu.data.prompts import expand
from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Data, Prompts, Recipe

IMAGES, SIDE = 30, 512  # pictures a set, as the public code draws; pixels of imported ones


@dataclass(frozen=True)
class Built:
    """A finished set."""

    name: str
    folder: Path
    sheet: Path
    images: int
    shows: str


def chosen_sets(
    recipe: Recipe | None,
    concept: str | None,
    named: Sequence[str],
    *,
    kind: ConceptKind = "object",
    related: Sequence[str] = (),
    unrelated: Sequence[str] = (),
    caption: str = "",
    images: int | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> dict[str, Prompts]:
    """The sets of a recipe or from a concept, with `named` ones added or in their place; `only` those named.

    Raises:
        RecipeError: nothing or too much to choose from, or a set that is not there.
    """
    if recipe and concept:
        raise RecipeError("A recipe and a --concept both say which sets to build; keep one.")
    sets: dict[str, Prompts] = {}
    if recipe:
        own = recipe_sets(recipe)
        sets = {n: s.model_copy(update={"images": images}) if images else s for n, s in own.items()}
    elif concept is not None:
        sets = concept_sets(concept, related, unrelated, kind=kind, images=images or IMAGES, seed=seed)
    sets |= dict(named_set(text, images=images, seed=seed, caption=caption) for text in named)
    if not sets:
        raise RecipeError("There is nothing to build; name a recipe, a --concept or a --set NAME=SOURCE.")
    if unknown := sorted(set(only or ()) - sets.keys()):
        raise RecipeError(f"There is no set '{unknown[0]}' to build; there are {', '.join(sets)}.")
    return {name: spec for name, spec in sets.items() if only is None or name in only}


def recipe_sets(recipe: Recipe) -> dict[str, Prompts]:
    """A recipe's forget, related and unrelated, its `attack_data`, and what its attacks use besides, by label."""
    data = recipe.data
    sets = {"forget": data.forget, "related": data.related, "unrelated": data.unrelated, **recipe.attack_data}
    others = {label: attack.data for label, attack in recipe.finetunes.items() if attack.data not in sets.values()}
    return {**others, **sets}


def named_set(text: str, *, images: int | None, seed: int, caption: str) -> tuple[str, Prompts]:
    """NAME=SOURCE, where the source is a folder of pictures, a .csv, a text file or a shipped list.

    Raises:
        RecipeError: it does not look like that.
    """
    name, equals, source = text.partition("=")
    if not (name and equals and source) or "/" in name:
        raise RecipeError(f"--set {text} must look like NAME=SOURCE, for example attack=paper/spongebob.")
    path = Path(source).expanduser()
    if path.is_dir():
        return name, Prompts(folder=path, caption=caption, images=images or 0)
    if path.suffix.lower() == ".csv":
        return name, Prompts(csv=path, images=images or 0, seed=seed)
    return name, Prompts(file=path, images=images or IMAGES, seed=seed)


def build_sets(
    specs: Mapping[str, Prompts],
    out: Path,
    load: Callable[[], Painter],
    how: Drawing,
    *,
    batch_size: int,
    say: Callable[[str], None],
) -> list[Built]:
    """Build every set in a folder of its name under `out`; what is there already is kept.

    Args:
        specs: the sets by name.
        out: where their folders and contact sheets go.
        load: gives the painter; called only when something is to be drawn.
        how: steps, guidance and size of the pictures.
        batch_size: pictures drawn at once.
        say: told when a set begins.

    Raises:
        UserError: anything wrong with any set, before the first picture is made.
    """
    side = how.size or SIDE
    for spec in specs.values():
        expand(spec)
        check_folder(spec, side)
    painter = load() if any(spec.folder is None for spec in specs.values()) else None
    sources = {name: _source(spec, painter, how, side, batch_size) for name, spec in specs.items()}
    for name, source in sources.items():
        check_set(source, out / name)
    built = []
    for name, source in sources.items():
        say(f"{name}: {len(source.items)} pictures")
        sheet = build_set(source, out / name)
        built.append(Built(name, out / name, sheet, len(source.items), specs[name].shows))
    return built


def _source(spec: Prompts, painter: Painter | None, how: Drawing, side: int, batch_size: int) -> Source:
    if spec.folder is not None:
        return Imported(spec, side)
    assert painter is not None
    return Drawn(painter, spec, how, batch_size)


def as_snippet(built: Sequence[Built]) -> str:
    """How a recipe uses the sets, as YAML: the three that training needs as `data`, others as attacks."""
    training = {p.name: _use(p) for p in built if p.name in Data.model_fields}
    attacks = {p.name: {"data": _use(p)} for p in built if p.name not in training}
    parts = {key: part for key, part in (("data", training), ("attacks", attacks)) if part}
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True, width=1000).strip()


def _use(part: Built) -> dict[str, str]:
    shows = {"shows": part.shows} if part.shows and "{" not in part.shows else {}
    return {"folder": str(part.folder.absolute()), **shows}
