"""How a model is attacked."""

from __future__ import annotations

from pydantic import Field

from adapter_mu.recipe.data import Prompts
from adapter_mu.recipe.strict import Strict


class Attack(Strict):
    """A stress test on the merged model: a full finetune on pictures of `data`."""

    data: Prompts
    lr: float = Field(1e-5, gt=0)
    batch_size: int = Field(1, gt=0)
    steps: list[int] = [50, 100, 200, 300]
    empty_captions: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
