"""Which knob to turn when a card is too small, and what each saves: the recipe is planned again with it turned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adapter_mu.errors import UserError
from adapter_mu.plan.planning import Plan, plan
from adapter_mu.recipe import Recipe, merged, parse

FREE = "costs transfers and time only"
CHANGES = "changes what is learned"


@dataclass(frozen=True)
class Knob:
    """A change of the recipe, as an override would make it, what it costs, and the plan with it."""

    override: str
    price: str
    found: Plan


def advice(recipe: Recipe, size: int | None = None, watch: Callable[[str], None] = lambda _: None) -> list[Knob]:
    """Every knob that lowers the peak, those that save most first.

    Args:
        recipe: one arm.
        size: side of the pictures in pixels, as for `plan`.
        watch: told the override that is planned next.
    """
    before, knobs = plan(recipe, size=size).peak, []
    for override, price in _turns(recipe):
        watch(override)
        try:
            found = plan(turned(recipe, override), size=size)
        except UserError:  # does not go together with the rest of the recipe
            continue
        if found.peak < before:
            knobs.append(Knob(override, price, found))
    return sorted(knobs, key=lambda knob: knob.found.peak)


def turned(recipe: Recipe, override: str) -> Recipe:
    """The recipe with "a.b=c d.e=f" set."""
    content = recipe.model_dump(mode="json")
    for text in override.split():
        key, _, value = text.partition("=")
        nested: object = int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        assert isinstance(nested, dict)
        content = merged(content, nested)
    return parse(content, "the recipe with a knob turned")


def _turns(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Overrides that change something, those that leave the result alone first."""
    memory, adapter, meta = recipe.train.memory, recipe.adapter, recipe.meta
    if not recipe.train.checkpointing:
        yield "train.checkpointing=true", FREE
    if memory.states == "device":
        yield "train.memory.states=cpu", FREE
        if memory.optimizer_on is None and memory.optimizer == "adam":
            yield "train.memory.optimizer_on=cpu", FREE
    if memory.encoders == "keep":
        yield "train.memory.encoders=release", FREE
    if memory.attention_chunk != 128:
        yield "train.memory.attention_chunk=128", FREE
    if memory.optimizer == "adam" and memory.states == "device" and memory.optimizer_on is None:
        yield "train.memory.optimizer=adam8bit", "rounds Adam's moments"
    if recipe.base.dtype == "fp32":
        yield "base.dtype=bf16", "rounds the base"
    if recipe.base.quantize == "none" and adapter.kind == "lora":
        yield "base.quantize=nf4", "rounds the base to 4 bits while training"
        yield "base.quantize=int8", "rounds the base to 8 bits while training"
    if recipe.data.sampler.batch_size > 1:
        yield "data.sampler.batch_size=1", FREE
    if recipe.train.batch_size > 1:
        yield "train.batch_size=1", CHANGES
    if adapter.kind == "lora" and adapter.rank > 4:
        yield f"adapter.rank={adapter.rank // 2}", CHANGES
    if adapter.kind == "dense":
        yield "adapter.kind=lora", CHANGES
    if adapter.subset != "cross_attention_kv":
        yield "adapter.subset=cross_attention_kv", CHANGES
    if meta and meta.attacker.steps > 1:
        yield "meta.attacker.steps=1", CHANGES
    if meta and meta.attacker.space != "adapter":
        yield "meta.attacker.space=adapter", CHANGES
