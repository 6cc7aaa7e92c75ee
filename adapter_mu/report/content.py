"""What the page's template is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapter_mu import __version__
from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.bars import sentences, verdicts
from adapter_mu.report.bundle import Bundle, differing
from adapter_mu.report.extras import Difference, Quality
from adapter_mu.report.facts import Facts
from adapter_mu.report.figures import conflict_figure, relearning_figure, training_figure, worst_figure
from adapter_mu.report.gallery import Gallery, gallery
from adapter_mu.report.pooling import pooled
from adapter_mu.report.rows import BASE, MALICIOUS, META, OF_RUN, arms, attacks, is_base
from adapter_mu.report.summary import Area, areas, worst_cases
from adapter_mu.report.svg import swatch
from adapter_mu.report.table import Line, Table, headline_table
from adapter_mu.report.training import Trend, agreement, terms, trend
from adapter_mu.report.words import listed, prompt_sentences, ratio_sentences, scales, worst_sentence

BASE_SERIES = 9
FEW = 2  # attacks that one sentence can speak for
COLUMNS = 11  # of scores and areas, that fit beside each other on a page


@dataclass(frozen=True)
class Part:
    """Attacks of the table that stand beside each other, with their steps."""

    groups: list[tuple[str, list[int]]]

    @property
    def columns(self) -> int:
        """How many columns the attacks take: one a step and one for the area."""
        return sum(len(steps) + 1 for _, steps in self.groups)


def content(bundle: Bundle) -> dict[str, Any]:
    """Everything the template names."""
    results, rows = bundle.results, pooled(bundle.results.rows)
    table, numbers, cases = headline_table(rows), series_numbers(arms(rows)), worst_cases(rows)
    counts = sorted({row.images for row in rows})
    return {
        "results": results,
        "facts": bundle.facts,
        "several": bundle.several,
        "caution": bundle.caution,
        "differing": differing(bundle.facts) if bundle.several else {},
        "version": __version__,
        "scales": scales(table.guidances),
        "images": str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "attacks": attacks(rows),
        "seeds": len({row.seed for row in bundle.results.rows}),
        "cases": [(row, worst_figure(row, numbers[row.arm]), _beside(results.differences, row)) for row in cases],
        "tried": listed(attacks(rows)) if attacks(rows) else "",
        "headline": [worst_sentence(row, results.concept) for row in cases],
        "prompt_sentences": prompt_sentences(results.prompt_attacks),
        **_bars(table, results.concept, bundle.several),
        "comparisons": comparisons(table, areas(rows), results.concept, bundle.several),
        "legend": [
            (arm, swatch(number, "flat" if is_base(arm) else "bold", sign=not is_base(arm)))
            for arm, number in numbers.items()
        ],
        "curves": [(a, relearning_figure(rows, a, numbers, results.concept)) for a in attacks(rows)],
        "areas": areas(rows),
        "table": table,
        "parts": parts(table),
        "methods": methods(table, bundle.facts, bundle.several),
        "thresholds": list(dict.fromkeys(name for row in cases for name in row.thresholds)),
        "quality": quality(results.quality),
        "pictures": pictures(bundle, cases),
        "sensitive": any(f.sensitive for f in bundle.facts),
        **_training(bundle, numbers),
    }


def _bars(table: Table, concept: str, several: bool) -> dict[str, Any]:
    """The project's own bars, which are about its attack "malicious" and one plainly unlearned arm."""
    found = [] if several or not _has(table, MALICIOUS) else verdicts(table)
    return {"verdicts": found, "bars": sentences(table, concept)[-1] if found else ""}


def comparisons(table: Table, found: Sequence[Area], concept: str, several: bool) -> list[str]:
    """How the defended arms compare with the plainly unlearned one: under the project's own attack, and over all."""
    tried = len(table.groups()) - 1
    if not tried and len(table.lines) > 1:
        return ["No finetuning attack was made, so nothing is said about relearning."]
    own = [] if several or (tried and not _has(table, MALICIOUS)) else sentences(table, concept)[:1]
    return own + (ratio_sentences(found) if not own or tried > FEW else [])


def _has(table: Table, attack: str) -> bool:
    return any(name == attack for name, _ in table.columns)


def series_numbers(names: Sequence[str]) -> dict[str, int]:
    """Which line, sign and colour each arm has; a base is always the grey one."""
    others = [name for name in names if not is_base(name)]
    found = {name: i if i < BASE_SERIES else i + 1 for i, name in enumerate(others)}
    return {name: found.get(name, BASE_SERIES) for name in names}


def parts(table: Table) -> list[Part]:
    """The table's attacks in parts that fit on a page; each attack has a column a step and one for its area."""
    found: list[Part] = [Part([])]
    for attack, steps in table.groups()[1:]:
        if found[-1].groups and found[-1].columns + len(steps) + 1 > COLUMNS:
            found.append(Part([]))
        found[-1].groups.append((attack, steps))
    return found


def methods(table: Table, facts: Sequence[Facts], several: bool) -> list[tuple[str, list[tuple[str, Line]]]]:
    """The table's lines by method, as the paper prints them: (method, [(type, line)]); by run where those differ."""
    found: dict[str, list[tuple[str, Line]]] = {}
    for line in table.lines:
        run, _, arm = line.arm.rpartition(OF_RUN)
        found.setdefault(run if several else _method(facts[0], line.arm), []).append((arm, line))
    return list(found.items())


def _method(facts: Facts, arm: str) -> str:
    """What an arm was made by; the base's own name for the base."""
    part: Any = facts.recipe.get("base") if arm == BASE else facts.recipe.get("method")
    changed = (facts.recipe.get("arms") or {}).get(arm) or {}
    if arm != BASE and isinstance(changed.get("method"), Mapping):
        part = {**(part or {}), **changed["method"]}
    return str(part.get("model" if arm == BASE else "name", "")) if isinstance(part, Mapping) else ""


def quality(items: Sequence[Quality]) -> list[tuple[str, int, dict[str, dict[str, Quality]], list[str]]]:
    """Quality figures by attack and step: (attack, step, metric -> arm -> item, arms)."""
    found = []
    for attack, step in dict.fromkeys((item.attack, item.step) for item in items):
        own = [item for item in items if (item.attack, item.step) == (attack, step)]
        metrics = {name: {i.arm: i for i in own if i.metric == name} for name in dict.fromkeys(i.metric for i in own)}
        found.append((attack, step, metrics, list(dict.fromkeys(item.arm for item in own))))
    return found


def pictures(bundle: Bundle, cases: Sequence[Row]) -> Gallery | None:
    """The viewer, open at the defended arm's worst case."""
    shown = next((row for row in cases if row.arm.rpartition(OF_RUN)[2] == META), cases[-1] if cases else None)
    first = bundle.facts[0]
    same = len({tuple(f.concept_prompts) for f in bundle.facts}) == 1
    return gallery(
        bundle.results.rows,
        bundle.strip,
        sensitive=any(f.sensitive for f in bundle.facts),
        worst=shown,
        prompts=(first.concept_prompts, first.benign_prompts) if same else ([], []),
    )


def _beside(differences: Sequence[Difference], row: Row) -> list[Difference]:
    """Paired differences measured at an arm's worst case."""
    here = (row.arm, row.attack, row.step, row.guidance)
    return [d for d in differences if (d.arm, d.attack, d.step, d.guidance) == here]


def _training(bundle: Bundle, numbers: Mapping[str, int]) -> dict[str, Any]:
    logs, (measure, found) = bundle.logs, agreement(bundle.logs)
    trends: dict[str, Trend] = {arm: line for arm, points in found.items() if (line := trend(*points))}
    return {
        "training": [(term, training_figure(term, logs, numbers)) for term in terms(logs)],
        "trained": [(arm, swatch(numbers.get(arm, 0), sign=False)) for arm in logs],
        "measure": measure,
        "trends": trends,
        "conflict": conflict_figure(measure, found, trends, numbers) if found else None,
    }
