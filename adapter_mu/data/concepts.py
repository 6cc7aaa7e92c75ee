"""Sets of prompts from a concept's name, so that nobody has to write lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from adapter_mu.data.prompts import read_templates
from adapter_mu.errors import RecipeError
from adapter_mu.recipe import Prompts

ConceptKind = Literal["object", "style"]
EVERYDAY, CLEAN = Path("templates/everyday"), Path("paper/clean")


def concept_sets(
    concept: str,
    related: Sequence[str] = (),
    unrelated: Sequence[str] = (),
    *,
    kind: ConceptKind = "object",
    images: int = 30,
    seed: int = 0,
) -> dict[str, Prompts]:
    """The five sets of the paper's section 5 for any concept, from the shipped templates.

    Args:
        concept: what is to be forgotten, in words the model knows.
        related: benign concepts beside it, such as "Patrick Star" beside "SpongeBob"; none leaves that set out.
        unrelated: benign concepts; none takes everyday things, those that name the concept left out.
        kind: "object" for things, characters and people, "style" for how pictures are made.
        images: pictures a set.
        seed: of how templates and words are combined; every set gets its own from it.

    Returns:
        forget, related (if any), unrelated, attack (sentences that training does not see) and clean.

    Raises:
        RecipeError: an empty concept, or one that is also listed as benign.
    """
    if not concept.strip():
        raise RecipeError("The concept is empty; give its name, for example --concept 'SpongeBob'.")
    if both := [word for word in (*related, *unrelated) if word.lower() == concept.lower()]:
        raise RecipeError(f"'{both[0]}' is the concept itself; leave it out of the benign ones.")
    training, attack = Path(f"templates/{kind}"), Path(f"templates/{kind}-attack")
    sets: dict[str, dict[str, Any]] = {"forget": _filled(training, [concept]) | {"shows": concept}}
    if related:
        sets["related"] = _filled(training, related)
    sets["unrelated"] = _filled(training, unrelated) if unrelated else {"prompts": _without(concept, EVERYDAY)}
    sets["attack"] = _filled(attack, [concept]) | {"shows": concept}
    sets["clean"] = {"prompts": _without(concept, CLEAN)}
    return {name: Prompts(images=images, seed=5 * seed + i, **own) for i, (name, own) in enumerate(sets.items())}


def _filled(template: Path, words: Sequence[str]) -> dict[str, Any]:
    return {"file": template, "fill": {"concept": list(words)}}


def _without(concept: str, file: Path) -> list[str]:
    """A shipped list without the prompts that name the concept; RecipeError when nothing is left."""
    kept = [line for line in read_templates(Prompts(file=file, images=1)) if concept.lower() not in line.lower()]
    if not kept:
        raise RecipeError(f"Every prompt of {file} names '{concept}'; give unrelated concepts of your own.")
    return kept
