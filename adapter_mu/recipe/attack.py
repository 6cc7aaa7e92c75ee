"""How a model is attacked: finetunes here, prompt attacks in `prompt_attack.py`, told apart by `kind`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from adapter_mu.recipe.data import Prompts
from adapter_mu.recipe.prompt_attack import PROMPT_KINDS, PromptAttack
from adapter_mu.recipe.strict import Strict

# Which kinds each key is for; with the others it must be left out, because it would do nothing.
_WEIGHTS = ("full", "cross_attention", "lora", "dreambooth")
_ONLY = {
    **dict.fromkeys(("rank", "alpha", "targets"), ("lora",)),
    **dict.fromkeys(("prior", "prior_weight"), _WEIGHTS),
    **dict.fromkeys(("placeholder", "initializer", "vectors", "replaces"), ("textual_inversion",)),
}


class Attack(Strict):
    """A finetune of the merged model on pictures of `data`, with curve points after each of `steps`.

    In a recipe and in a file under `recipes/attacks/`, `data`, `mixed_with` and `prior` may be the name of a picture
    set (`malicious`, `clean`), `images` says how many of its pictures to use, `lr` may be a list (one attack each), and
    `use` names such a file to start from: `attack_files.complete` makes such an entry whole.
    """

    kind: Literal["full", "cross_attention", "lora", "dreambooth", "textual_inversion"] = "full"
    data: Prompts
    mixed_with: Prompts | None = None  # a second set; batches draw from the pictures of both
    caption: str = ""  # one caption for every picture instead of its prompt; {concept} is the recipe's concept
    steps: list[int] = [50, 100, 200, 300]
    seeds: list[int] = Field([0], min_length=1)  # of batches, noise and the adapter's start; one curve each
    optimizer: Literal["adamw", "adamw8bit", "sgd"] = "adamw"
    lr: float = Field(1e-5, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)  # of sgd
    batch_size: int = Field(1, gt=0)
    empty_captions: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    rank: int = Field(4, gt=0)
    alpha: float | None = Field(None, gt=0)  # None: the rank, so that the adapter is added as it is
    targets: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], min_length=1)  # ends of layer names, as peft's
    prior: Prompts | None = None  # DreamBooth's class pictures, drawn by the base
    prior_weight: float = Field(1.0, ge=0)
    placeholder: str = Field("<learned>", pattern=r"^\S+$")  # the new token that textual inversion learns
    initializer: str = ""  # the word whose embedding it starts from; "": the mean of all tokens
    vectors: int = Field(1, gt=0)
    replaces: str = ""  # the word of prompts that it takes the place of; "": the recipe's concept
    checkpointing: bool = False
    attention: Literal["sdpa", "xformers"] = "sdpa"

    @model_validator(mode="after")
    def _keys_are_of_the_kind(self) -> Attack:
        for key, kinds in _ONLY.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` does nothing with kind {self.kind}; remove it or use {' or '.join(kinds)}")
        if self.kind == "dreambooth" and self.prior is None:
            raise ValueError("dreambooth needs `prior`, the class pictures; give prompts or a set's name such as clean")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"`momentum` is sgd's and does nothing with {self.optimizer}; remove it")
        return self


def _family(entry: Any) -> str:
    kind = entry.get("kind") if isinstance(entry, Mapping) else getattr(entry, "kind", None)
    return "[prompt]" if kind in PROMPT_KINDS else "[finetune]"


# The tags stand in pydantic's error places; their brackets have `sentences` leave them out.
AnyAttack = Annotated[
    Annotated[Attack, Tag("[finetune]")] | Annotated[PromptAttack, Tag("[prompt]")], Discriminator(_family)
]
