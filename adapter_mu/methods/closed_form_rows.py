"""Which rows of which prompts a closed-form edit works on: concepts in words become embeddings.

A prompt is padded to T tokens (77 for SD) and encoded to T rows. Which of them stand for the concept differs:

- `paper` (default): all T, each mapped to the row of the guide at the same place, as the paper's equation has it,
  where T(c) is the whole embedding. Scales multiply means over the concepts, the paper's expectations, so that
  hundreds of preserved concepts do not outweigh the erased ones.
- `subject`: the last subject token's row only, one a concept, also of preserved concepts and guides (of an empty guide
  that is the row of the start token). Scales multiply sums. The newer public code of UCE.
- `legacy`: from the last subject token to the end, the guide's rows shifted to start at its own last subject token;
  preserved are all rows of every concept and of the empty prompt. Scales multiply sums, `preserve_scale` is
  max(0.1, 1 / number of preserved prompts) where not given. The older public code of UCE, which RECE starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adapter_mu.data.prompts import read_templates
from adapter_mu.methods.closed_form import Erasure, key_value_weights
from adapter_mu.models import LoadedModel, encode_prompts
from adapter_mu.recipe import Prompts, Strict

Rows = Literal["paper", "subject", "legacy"]
_AT_ONCE = 64  # prompts encoded together; all rows of hundreds in float64 would be gigabytes


class ConceptOptions(Strict):
    """Concepts in words, and the scales of the UCE solve.

    `guide` is one for all or a list, one for each of `erase`. `preserve` is a list or a text file, one concept a line.
    `erase_scale` multiplies the erase term, `preserve_scale` is the paper's lambda_1, `lamb` its lambda_2.
    """

    erase: list[str] = Field(min_length=1)
    guide: str | list[str] = ""
    preserve: list[str] | Path = []
    rows: Rows = "paper"
    erase_scale: float = Field(1.0, gt=0)
    preserve_scale: float | None = Field(None, ge=0)
    lamb: float = Field(0.5, ge=0)

    @model_validator(mode="after")
    def _concepts_fit(self) -> ConceptOptions:
        if not all(concept.strip() for concept in self.erase):
            raise ValueError("`erase` holds an empty concept; name what to erase")
        if isinstance(self.guide, list) and len(self.guide) != len(self.erase):
            raise ValueError(f"`guide` lists {len(self.guide)} for {len(self.erase)} concepts; give one each, or one")
        if isinstance(self.preserve, list) and (both := set(self.erase) & set(self.preserve)):
            raise ValueError(f"'{sorted(both)[0]}' is to be erased and preserved; take it out of one list")
        return self

    @property
    def guides(self) -> list[str]:
        """One guide a concept."""
        return self.guide if isinstance(self.guide, list) else [self.guide] * len(self.erase)

    def preserved(self) -> list[str]:
        """The concepts to preserve, from the list or the file; RecipeError for a file that cannot be read."""
        listed = self.preserve if isinstance(self.preserve, list) else _from_file(self.preserve)
        return ["", *listed] if self.rows == "legacy" else listed


def _from_file(file: Path) -> list[str]:
    return read_templates(Prompts(file=file, images=1))


class ConceptMethod:
    """What the closed-form methods share: concepts in words and a base whose keys and values can be edited."""

    def __init__(self, options: ConceptOptions) -> None:
        """Options from a recipe; RecipeError when the file of preserved concepts cannot be read."""
        self.preserved = options.preserved()

    def check(self, model: LoadedModel) -> None:
        """ModelError or RecipeError when the base has no cross-attention keys and values to edit."""
        key_value_weights(model.unet)


def erasure(model: LoadedModel, concepts: Sequence[str], guides: Sequence[str], rows: Rows, scale: float) -> Erasure:
    """The rows of `concepts` paired with those of their guides, weighted by `scale` (paper: over their number)."""
    found = [_pair(model, concept, guide, rows) for concept, guide in zip(concepts, guides, strict=True)]
    contexts, targets = (torch.cat(side) for side in zip(*found, strict=True))
    return Erasure(contexts, targets, scale / len(concepts) if rows == "paper" else scale)


def preserve_matrix(model: LoadedModel, concepts: Sequence[str], rows: Rows, scale: float | None) -> Tensor:
    """R = w * sum over rows r of `concepts` of r r^T, (width, width): all that the equations need of them."""
    return preserve_weight(len(concepts), rows, scale) * row_products(model, concepts, rows)


def preserve_weight(count: int, rows: Rows, scale: float | None) -> float:
    """What the squared distance of every row of `count` preserved prompts is multiplied by."""
    if rows == "legacy":
        return max(0.1, 1 / count) if scale is None else scale
    given = 1.0 if scale is None else scale
    return given / max(1, count) if rows == "paper" else given


def row_products(model: LoadedModel, concepts: Sequence[str], rows: Rows) -> Tensor:
    """Sum over rows r of `concepts` of r r^T, (width, width); zeros for no concepts."""
    width = model.unet.config.cross_attention_dim
    total = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(concepts), _AT_ONCE):
        part = concepts[start : start + _AT_ONCE]
        embeds = embeddings(model, part)
        if rows == "subject":
            embeds = embeds[torch.arange(len(part)), last_subject_tokens(model, part)]
        flat = embeds.reshape(-1, width)
        total.addmm_(flat.T, flat)
    return total


def embeddings(model: LoadedModel, concepts: Sequence[str]) -> Tensor:
    """What the key and value matrices are shown for each concept, (N, T, width), float64 on the CPU."""
    return encode_prompts(model, concepts).embeds.to("cpu", torch.float64)


def last_subject_tokens(model: LoadedModel, concepts: Sequence[str]) -> Tensor:
    """Where each concept's last word ends in the first tokenizer's padded tokens, (N,); 0, the start token, for ""."""
    tokenizer: Any = model.pipeline.tokenizer
    length = tokenizer.model_max_length
    padded = tokenizer(list(concepts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    last: Tensor = padded.attention_mask.sum(dim=1) - 2
    return last


def _pair(model: LoadedModel, concept: str, guide: str, rows: Rows) -> tuple[Tensor, Tensor]:
    """(N, width) rows of the concept and the guide's in their place."""
    old, new = embeddings(model, [concept, guide])
    if rows == "paper":
        return old, new
    first, of_guide = last_subject_tokens(model, [concept, guide]).tolist()
    count = 1 if rows == "subject" else len(old) - max(first, of_guide)
    return old[first : first + count], new[of_guide : of_guide + count]
