"""Prompts as tokens, with slots in front of them for adversarial ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.models import LoadedModel

Range = Literal["all", "words"]
MARKS = 2  # the start and end tokens around every prompt


def text_parts(model: LoadedModel) -> list[tuple[Any, Any]]:
    """The model's (tokenizer, text encoder) pairs: one for SD 1.x, two for SDXL."""
    pipeline = model.pipeline
    parts = [(pipeline.tokenizer, pipeline.text_encoder)]
    return parts if model.kind == "sd" else [*parts, (pipeline.tokenizer_2, pipeline.text_encoder_2)]


def the_tokenizer(model: LoadedModel) -> Any:
    """The tokenizer whose tokens are searched among.

    SDXL's two share one vocabulary, so the same k tokens go in front of the prompt in both, as they do when somebody
    types them.

    Raises:
        ModelError: two tokenizers have different vocabularies, so no token means the same to both.
    """
    (tokenizer, _), *others = text_parts(model)
    if any(other.get_vocab() != tokenizer.get_vocab() for other, _ in others):
        raise ModelError(
            f"the two tokenizers of '{model.source}' have different vocabularies, so no adversarial token would mean"
            " the same to both: this attack cannot be used on it."
        )
    return tokenizer


def usable_tokens(tokenizer: Any, among: Range, forbid: list[str]) -> Tensor:
    """The token ids that the attack may use, (V,), ascending.

    `all`: the whole vocabulary but the special tokens, which no prompt can hold. `words`: of those, the printable ones
    that come back as themselves when somebody types them. Tokens that contain a word of `forbid` are left out.

    Raises:
        RecipeError: nothing is left.
    """
    special = set(tokenizer.all_special_ids)
    ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    spelled = [tokenizer.decode([i]) for i in ids]
    if among == "words":
        read = tokenizer(spelled, add_special_tokens=False).input_ids
        keep = [word.isprintable() and back == [i] for i, word, back in zip(ids, spelled, read, strict=True)]
        ids, spelled = ([x for x, k in zip(column, keep, strict=True) if k] for column in (ids, spelled))
    ids = [i for i, word in zip(ids, spelled, strict=True) if not holds_any(word, forbid)]
    if not ids:
        raise RecipeError("The prompt attack has no token left to use; forbid fewer words or set `among: all`.")
    return torch.tensor(ids)


def holds_any(text: str, words: list[str]) -> bool:
    """Whether one of the words occurs in the text, in upper or lower case."""
    return any(word.lower() in text.lower() for word in words)


def room(model: LoadedModel) -> int:
    """How many tokens a prompt may have, start and end marks apart."""
    return min(_length(*part) for part in text_parts(model)) - MARKS


def count(model: LoadedModel, text: str) -> int:
    """How many tokens the text has, start and end marks apart; the larger number for two tokenizers."""
    return max(len(tokenizer(text, add_special_tokens=False).input_ids) for tokenizer, _ in text_parts(model))


def with_slots(tokenizer: Any, encoder: Any, prompts: list[str], slots: int) -> Tensor:
    """Ids (N, L) of the padded prompts, with `slots` places, yet 0, between the start mark and the first word."""
    length = _length(tokenizer, encoder)
    padded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    places = torch.zeros(len(prompts), slots, dtype=padded.dtype)
    return torch.cat([padded[:, :1], places, padded[:, 1 : length - slots]], dim=1).to(encoder.device)


def spell(tokenizer: Any, tokens: list[int]) -> str:
    """The tokens as text, which is what an attacker types and what is tested."""
    text: str = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return text.strip()


def _length(tokenizer: Any, encoder: Any) -> int:
    return int(min(tokenizer.model_max_length, encoder.config.max_position_embeddings))
