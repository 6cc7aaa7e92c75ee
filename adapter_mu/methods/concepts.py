"""Several concepts at once: which prompts belong to which, and how they take turns."""

from __future__ import annotations

from adapter_mu.data.prompts import Prompt


def concept_groups(prompts: list[Prompt], concepts: list[str]) -> list[list[str]]:
    """The texts to forget, one list a concept, never empty.

    Args:
        prompts: of the forget set; those that show the same belong to one concept.
        concepts: where given, each is a concept of its own and the prompts are not used.
    """
    if concepts:
        return [[concept] for concept in concepts]
    groups: dict[str, list[str]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.shows, []).append(prompt.text)
    return list(groups.values())


def in_turn(groups: list[list[str]], count: int) -> list[str]:
    """`count` texts: the concepts in turn, and of each its texts in turn."""
    own = [groups[i % len(groups)] for i in range(count)]
    return [texts[i // len(groups) % len(texts)] for i, texts in enumerate(own)]
