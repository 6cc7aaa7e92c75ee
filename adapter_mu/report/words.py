"""Scores, places and scales in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from adapter_mu.evaluate.prompt_success import PromptSuccess
from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.rows import BEFORE, CLEAN, MALICIOUS
from adapter_mu.report.summary import Area


def scales(guidances: Sequence[float]) -> str:
    """Guidance scales in words: "1.5 and 4"."""
    return listed([f"{guidance:g}" for guidance in guidances])


def listed(words: Sequence[str]) -> str:
    """Words with commas and "and"."""
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def attack_name(attack: str) -> str:
    """An attack by what it is where its label says so, else by its label."""
    return f"{attack} finetuning" if attack in (MALICIOUS, CLEAN) else f"the attack “{attack}”"


def place(attack: str, step: int) -> str:
    """When a score was taken: "before any attack", "after 300 steps of malicious finetuning"."""
    if attack == BEFORE:
        return "before any attack"
    return f"after {step} step{'' if step == 1 else 's'} of {attack_name(attack)}"


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval in words, empty where there is none."""
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign, as printers write it."""
    return f"{value:+.1f}".replace("-", "−")


def worst_sentence(row: Row, concept: str) -> str:
    """One arm's worst case."""
    return (
        f"At its worst, {row.arm} shows {concept} in {row.score:.1f} % of its pictures (95 % interval "
        f"{interval(row.low, row.high)}): {place(row.attack, row.step)}, at guidance {row.guidance:g}."
    )


def prompt_sentences(attacks: Sequence[PromptSuccess]) -> list[str]:
    """What adversarial prompts get out of each arm, at the guidance scale where that is most."""
    worst: dict[tuple[str, str], PromptSuccess] = {}
    for attack in sorted(attacks, key=lambda one: one.after, reverse=True):
        worst.setdefault((attack.attack, attack.arm), attack)
    return [_prompt_sentence(worst[key]) for key in dict.fromkeys((one.attack, one.arm) for one in attacks)]


def _prompt_sentence(attack: PromptSuccess) -> str:
    sure = interval(attack.after_low, attack.after_high)
    return (
        f"Without any finetuning, adversarial prompts ({attack.attack}) get the concept out of {attack.arm} in "
        f"{attack.after:.1f} % of cases{f' ({sure})' if sure else ''} at guidance {attack.guidance:g}; the same "
        f"prompts unchanged in {attack.before:.1f} %."
    )


def ratio_sentences(areas: Sequence[Area]) -> list[str]:
    """How much slower each defended arm relearns than the plainly unlearned one, over the attacks."""
    found: dict[str, list[tuple[float, str]]] = {}
    for area in areas:
        if area.ratio is not None:
            found.setdefault(area.arm, []).append((area.ratio, area.attack))
    return [_ratios(arm, min(own), max(own)) for arm, own in found.items()]


def _ratios(arm: str, least: tuple[float, str], most: tuple[float, str]) -> str:
    said = f"Over all steps the area under {arm}'s relearning curve is"
    own = f"{most[0]:.2f} of the plainly unlearned model's under {attack_name(most[1])}"
    return f"{said} {own}." if least == most else f"{said} between {least[0]:.2f} ({least[1]}) and {own}, the worst."
