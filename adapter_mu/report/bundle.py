"""One run, or several as if they were one: what a page is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapter_mu.evaluate.statistics import Row
from adapter_mu.report.facts import Facts, flattened, load_facts
from adapter_mu.report.gallery import strip_path
from adapter_mu.report.rows import BASE, OF_RUN, Results, arms, load_results
from adapter_mu.report.training import Log, load_training
from adapter_mu.report.words import listed


@dataclass(frozen=True)
class Bundle:
    """Results with their facts, one a run; where several runs are joined, arms are named "run · arm"."""

    results: Results
    facts: list[Facts]
    logs: dict[str, Log]
    homes: Mapping[str, tuple[Path, str]]
    caution: str

    @property
    def several(self) -> bool:
        """Whether runs are compared."""
        return len(self.facts) > 1

    def strip(self, row: Row) -> Path:
        """Where the strip of a row's cell lies."""
        folder, arm = self.homes[row.arm]
        return strip_path(folder, replace(row, arm=arm))


def load_run(run: Path) -> Bundle:
    """Everything a run's folder holds for its page; UserError when it has no results or they cannot be read."""
    results = load_results(run)
    names = arms(results.rows)
    return Bundle(results, [load_facts(run, results)], load_training(run, names), {a: (run, a) for a in names}, "")


def join(bundles: Sequence[Bundle], labels: Sequence[str]) -> Bundle:
    """Several runs side by side; a base that scored the same in all of them is shown once."""
    one_base = len({tuple(map(_figures, _base_rows(b.results))) for b in bundles}) == 1
    names = [_names(bundle, label, one_base) for bundle, label in zip(bundles, labels, strict=True)]
    parts = [_renamed(bundle.results, own) for bundle, own in zip(bundles, names, strict=True)]
    first = parts[0]
    concept = " / ".join(dict.fromkeys(part.concept for part in parts))
    rows = [row for i, part in enumerate(parts) for row in part.rows if i == 0 or row.arm != BASE]
    results = replace(
        first,
        rows=rows,
        concept=concept,
        title=f"{len(parts)} runs compared",
        caption=", ".join(labels),
        headline="",
        quality=[item for part in parts for item in part.quality],
        differences=[item for part in parts for item in part.differences],
        prompt_attacks=[item for part in parts for item in part.prompt_attacks],
    )
    facts = [replace(bundle.facts[0], label=label) for bundle, label in zip(bundles, labels, strict=True)]
    pairs = list(zip(bundles, names, strict=True))
    logs = {own[arm]: log for bundle, own in pairs for arm, log in bundle.logs.items()}
    homes = {own[arm]: home for bundle, own in reversed(pairs) for arm, home in bundle.homes.items()}
    return Bundle(results, facts, logs, homes, caution([b.results for b in bundles], facts))


def _base_rows(results: Results) -> list[Row]:
    return sorted(
        (row for row in results.rows if row.arm == BASE), key=lambda row: (row.attack, row.step, row.guidance)
    )


def _figures(row: Row) -> tuple[float, ...]:
    return row.guidance, row.step, row.score, row.benign, row.images


def _names(bundle: Bundle, label: str, one_base: bool) -> dict[str, str]:
    kept = {BASE: BASE} if one_base else {}
    return {arm: kept.get(arm, f"{label}{OF_RUN}{arm}") for arm in arms(bundle.results.rows)}


def _renamed(results: Results, names: Mapping[str, str]) -> Results:
    def new(arm: str) -> str:
        return names.get(arm, arm)

    return replace(
        results,
        rows=[replace(row, arm=new(row.arm)) for row in results.rows],
        quality=[replace(item, arm=new(item.arm)) for item in results.quality],
        differences=[replace(d, arm=new(d.arm), reference=new(d.reference)) for d in results.differences],
        prompt_attacks=[replace(item, arm=new(item.arm)) for item in results.prompt_attacks],
    )


def caution(results: Sequence[Results], facts: Sequence[Facts]) -> str:
    """What makes scores of these runs not comparable, in a sentence; empty where nothing does."""
    compared = {
        "the concept": [r.concept for r in results],
        "the detector": [f.detector.get("name", "") for f in facts],
        "the guidance scales": [str(sorted({row.guidance for row in r.rows})) for r in results],
        "the number of pictures": [str(sorted({row.images for row in r.rows})) for r in results],
        "the prompts": ["\n".join(f.concept_prompts) for f in facts],
        "the attacks": [str(sorted((name, sorted(a.items())) for name, a in f.attacks.items())) for f in facts],
    }
    found = [what for what, values in compared.items() if len(set(values)) > 1]
    return f"The runs differ in {listed(found)}, so their scores do not compare directly." if found else ""


def differing(facts: Sequence[Facts]) -> dict[str, list[str]]:
    """The settings in which the runs' recipes differ: a value a run, empty where a recipe does not say."""
    flat = [flattened(f.recipe) for f in facts]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    values = {key: [recipe.get(key, "") for recipe in flat] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}
