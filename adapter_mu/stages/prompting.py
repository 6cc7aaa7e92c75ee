"""Attack an arm by prompts; what is found is kept, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from adapter_mu.attack.prompts.tokens import the_tokenizer, usable_tokens
from adapter_mu.attack.prompts.unlearndiffatk import Case, attack_prompts, noise_levels, too_long
from adapter_mu.data.cache import write_text
from adapter_mu.data.prompts import Prompt, expand
from adapter_mu.errors import RecipeError
from adapter_mu.evaluate.prompt_success import PromptSuccess, prompt_success
from adapter_mu.evaluate.scores import draw, draw_latents, judge
from adapter_mu.models import LoadedModel
from adapter_mu.progress import progress
from adapter_mu.recipe import AnyAttack, Evaluate, PromptAttack
from adapter_mu.stages.setting import Run, say

RATES = "prompt_attacks.json"  # beside an arm's scores
Record = dict[str, Any]


def check_prompt_attacks(model: LoadedModel, evaluate: Evaluate, attacks: dict[str, PromptAttack]) -> None:
    """UserError when an attack has no prompt or no token that it can use on this model."""
    for label, attack in attacks.items():
        prompts = [prompt.text for prompt in _prompts(evaluate, attack)]
        usable_tokens(the_tokenizer(model), attack.among, attack.forbid)
        if len(too_long(model, prompts, attack)) == len(prompts):
            raise RecipeError(
                f"Attack '{label}' can use none of the prompts of `evaluate.concept`: each is too long to take"
                f" {attack.tokens} more tokens; set fewer `tokens` or shorter prompts."
            )


def prompt_attack_arm(
    run: Run, name: str, merged: LoadedModel, evaluate: Evaluate, attacks: Mapping[str, AnyAttack]
) -> None:
    """Those of the attacks that search for prompts, with every seed; leaves `arms/NAME/prompt_attacks.json`."""
    searches = {label: attack for label, attack in attacks.items() if isinstance(attack, PromptAttack)}
    for label, attack in searches.items():
        for seed in attack.seeds:
            session = PromptSession(run, name, merged, evaluate, label, attack, seed)
            again = f", seed {seed}" if len(attack.seeds) > 1 else ""
            run.announce(f"{name}: {label} on {len(session.prompts)} prompts{again}{session.state}")
            session.work()
            _save(run.arm_folder(name) / RATES, session.rates())


def prompt_success_rates(arm_folder: Path) -> list[dict[str, Any]]:
    """The items for `prompt_attacks` in results.json that the arm's folder holds."""
    file = arm_folder / RATES
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return found


def searches_done(arm_folder: Path, attacks: Mapping[str, PromptAttack]) -> bool:
    """Whether the arm's folder holds the rates of every prompt attack with every seed."""
    there = {(item["attack"], item["seed"]) for item in prompt_success_rates(arm_folder)}
    return {(label, seed) for label, attack in attacks.items() for seed in attack.seeds} <= there


def _save(file: Path, rates: list[PromptSuccess]) -> None:
    """Add them to what is there, in place of what the same attack left before."""
    fresh = [asdict(rate) for rate in rates]
    own = {(item["attack"], item["seed"]) for item in fresh}
    others = [item for item in prompt_success_rates(file.parent) if (item["attack"], item["seed"]) not in own]
    write_text(file, json.dumps([*others, *fresh], indent=1))


def _prompts(evaluate: Evaluate, attack: PromptAttack) -> list[Prompt]:
    return expand(evaluate.concept)[: attack.prompts or None]


class PromptSession:
    """One prompt attack on one arm with one seed.

    Every prompt leaves a line in `arms/NAME/LABEL_SEED.jsonl`: its number and text, "before" (whether it succeeds as it
    is, by guidance scale), and "found" (the adversarial prompt that succeeded first: timestep, token ids, text). A
    prompt that is too long has "left_out" instead. Lines are written a batch at a time.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        merged: LoadedModel,
        evaluate: Evaluate,
        label: str,
        attack: PromptAttack,
        seed: int,
    ) -> None:
        self.run, self.name, self.model, self.evaluate = run, name, merged, evaluate
        self.label, self.attack, self.seed = label, attack, seed
        self.prompts = _prompts(evaluate, attack)
        self.file = run.arm_folder(name) / f"{label}_{seed}.jsonl"
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        self.records: list[Record] = [json.loads(line) for line in lines]

    @property
    def state(self) -> str:
        """What of it was done before, in words."""
        done = len(self.records)
        return "" if not done else ", done before" if done == len(self.prompts) else f", {done} done before"

    def work(self) -> None:
        """Attack the prompts that have no line yet."""
        fitting, size = self._fitting(), self.attack.batch_size
        batches = [fitting[start : start + size] for start in range(0, len(fitting), size)]
        done = {record["number"] for record in self.records}
        levels = len(noise_levels(self.model.num_train_timesteps, self.attack.timesteps))
        bar = progress(range(len(batches) * levels), self.label, leave=False)
        for i, batch in enumerate(batches):
            for level, _ in enumerate([] if done >= set(batch) else self._attack(batch), start=1):
                bar.update(i * levels + level - bar.n)
            bar.update((i + 1) * levels - bar.n)
        bar.close()

    def _fitting(self) -> list[int]:
        """The numbers of the prompts that leave room for the tokens; the others are told and recorded once."""
        long = too_long(self.model, [prompt.text for prompt in self.prompts], self.attack)
        if long and not self.records:
            say(f"{len(long)} of {len(self.prompts)} prompts leave no room for the tokens and are left out")
            self._keep([{"number": i, "prompt": self.prompts[i].text, "left_out": "too long"} for i in long])
        return [number for number in range(len(self.prompts)) if number not in long]

    def rates(self) -> list[PromptSuccess]:
        """The success rates at each guidance scale; prompts that were left out do not count."""
        kept = [record for record in self.records if "left_out" not in record]
        return [
            prompt_success(
                self.name,
                self.label,
                guidance,
                [record["before"][f"{guidance:g}"] for record in kept],
                [f"{guidance:g}" in record["found"] for record in kept],
                self.seed,
            )
            for guidance in self.evaluate.guidance
        ]

    def _attack(self, batch: list[int]) -> Iterator[int]:
        """Attack the prompts with these numbers; yields the noise levels that are done, keeps the records."""
        scales, spec, evaluate = self.evaluate.guidance, self.evaluate.concept, self.evaluate
        before = {scale: self._succeed(batch, [self.prompts[i].text for i in batch], scale) for scale in scales}
        usual = evaluate.usual_guidance
        targets = draw_latents(self.run.model, self.prompts, spec.seed, evaluate, usual, batch)
        cases = [
            Case(number, self.prompts[number].text, target, {scale for scale in scales if not before[scale][row]})
            for row, (number, target) in enumerate(zip(batch, targets, strict=True))
        ]

        def judged(rows: list[int], texts: list[str], guidance: float) -> list[bool]:
            return self._succeed([batch[row] for row in rows], texts, guidance)

        yield from attack_prompts(self.model, cases, self.attack, self.seed, judged)
        self._keep([_record(case, {s: before[s][row] for s in scales}) for row, case in enumerate(cases)])

    def _succeed(self, numbers: list[int], texts: list[str], guidance: float) -> list[bool]:
        """Whether the arm's pictures of `texts` show what these prompts should, drawn from the same noise."""
        prompts, shows = list(self.prompts), [self.prompts[number].shows for number in numbers]
        for number, text in zip(numbers, texts, strict=True):
            prompts[number] = replace(prompts[number], text=text)
        pictures = draw(self.model, prompts, self.evaluate.concept.seed, self.evaluate, guidance, numbers)
        assert self.run.detector is not None
        found: torch.Tensor = judge(self.run.detector, pictures, shows)[0]
        return [bool(one) for one in found]

    def _keep(self, records: list[Record]) -> None:
        self.records += records
        write_text(self.file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records))


def _record(case: Case, before: dict[float, bool]) -> Record:
    return {
        "number": case.number,
        "prompt": case.prompt,
        "before": {f"{scale:g}": success for scale, success in before.items()},
        "found": {f"{scale:g}": asdict(found) for scale, found in sorted(case.found.items())},
    }
