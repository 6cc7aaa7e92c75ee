"""The model card: what was erased, how, which attacks were run with which result, and what is not promised."""

from __future__ import annotations

from collections.abc import Sequence

from adapter_mu import __version__
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.edits import Edits

_NOT_PROMISED = """\
- **It is delay, not immunity.** An attacker with more steps, more data or a larger learning rate gets the concept back.
- **Only what was attacked is known.** The table lists every attack that was run; nothing is known about others
  (textual inversion, adversarial prompts, LoRA and DreamBooth finetunes, merging with other models) unless it is there.
- **A score is what a detector finds.** Pictures that it does not recognise are not counted.
- **It is no safety filter.** Keep the safety checker and the licence of the base."""
_UNMERGED = """
> **This is an adapter, not a defence.** Whoever leaves it out has the base model with all it knows. Merge it
> (`adapter-mu merge`) before you publish a model that is meant to have forgotten something.
"""


def model_card(
    base: Checkpoint, adapters: Sequence[Edits], results: str | None, *, merged: bool, hub: str | None = None
) -> str:
    """Text of a README.md for the Hugging Face hub, as its `ModelCard` reads it.

    Args:
        base: what the adapters belong to.
        adapters: what was merged or is exported.
        results: the attacks and scores in Markdown; None where the run has none.
        merged: whether the weights are merged.
        hub: the base's id on the hub, if it came from there.
    """
    from huggingface_hub import ModelCard, ModelCardData

    concepts = _named(adapters, "concept")
    title = f"{base.name} without {concepts}" if concepts else f"{base.name}, edited"
    data = ModelCardData(
        base_model=hub,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["adapter_mu", "unlearning", "stable-diffusion-xl" if base.kind == "sdxl" else "stable-diffusion"]
        + ([] if merged else ["lora"]),
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n",
        "" if merged else _UNMERGED,
        "## What was erased, and how\n",
        *(_erased(edits) for edits in adapters),
        f"Base: {base.name}. {'Merged' if merged else 'Exported'} by adapter_mu {__version__}.\n",
        "## Attacks\n",
        results or "No attack was recorded with this model: nothing is known about how easily the concept returns.\n",
        f"## What is not promised\n\n{_NOT_PROMISED}\n",
    ]
    return str(ModelCard("\n".join(part for part in parts if part)))


def _erased(edits: Edits) -> str:
    say = edits.metadata.get
    what = f"*{say('concept')}*" if say("concept") else "not recorded"
    how = f"method `{say('method')}`" if say("method") else "method not recorded"
    recipe = f", recipe `{say('recipe')}` ({say('recipe_hash', 'no hash')})" if say("recipe") else ""
    kind = {"lora": "LoRA", "low_rank": "exact low-rank edit", "dense": "dense delta"}[edits.kind]
    subset = f" of the subset `{say('subset')}`" if say("subset") else ""
    return f"- {what}: {how}{recipe}; {kind}{subset}, {edits.count} weights.\n"


def _named(adapters: Sequence[Edits], key: str) -> str:
    return ", ".join(dict.fromkeys(edits.metadata[key] for edits in adapters if key in edits.metadata))
