"""How a model is scored."""

from __future__ import annotations

from pydantic import Field

from adapter_mu.recipe.data import Prompts
from adapter_mu.recipe.strict import Strict


class Evaluate(Strict):
    """How scores are taken: the concept's and the benign prompts, at every guidance scale; the worst counts."""

    detector: str
    concept: Prompts
    benign: Prompts
    guidance: list[float] = Field([1.5, 7.5], min_length=1)
    usual_guidance: float = 7.5
    steps: int = Field(50, gt=0)
    batch_size: int = Field(4, gt=0)
