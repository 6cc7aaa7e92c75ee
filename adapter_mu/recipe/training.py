"""How the adapter is trained: method, adapter, outer loop, meta objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapter_mu.recipe.strict import Strict


class Method(BaseModel):
    """The unlearning method by name; its own options stand beside the name and are checked by the method."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything in the recipe's `method` part but the name."""
        return dict(self.model_extra or {})


class Adapter(Strict):
    """What is trained and saved."""

    kind: Literal["lora", "dense"] = "lora"
    subset: str = "non_cross_attention"
    rank: int = Field(16, gt=0)
    alpha: float | None = None


class Memory(Strict):
    """What training keeps where (docs/memory.md); none of it changes what is learned, 8-bit moments a little.

    `states`: the weights that are trained (fp32), their gradients and the attacker's steps; what lies on the CPU is
    brought to a layer when it runs. `optimizer_on`: Adam's moments; without it they lie where the states do.
    `attention_chunk`: query rows at a time in a product, 0 for all, without it what fits a cache. `encoders`: whether
    text encoders and VAE leave the GPU while training, when all they have to say is known.
    """

    states: Literal["device", "cpu"] = "device"
    optimizer: Literal["adam", "adam8bit"] = "adam"
    optimizer_on: Literal["device", "cpu"] | None = None
    attention_chunk: int | None = Field(None, ge=0)
    encoders: Literal["keep", "release"] = "release"

    @model_validator(mode="after")
    def _eight_bits_stay_with_the_weights(self) -> Memory:
        if self.optimizer == "adam8bit" and self.optimizer_on not in (None, self.states):
            raise ValueError("adam8bit steps where the states are; leave optimizer_on out or take optimizer: adam")
        return self


class Train(Strict):
    """The outer loop (paper Algorithm 1): N = `steps`, omega = `lr`, gamma_1 = `unlearn_weight`.

    A recipe that trains nothing (a closed-form method without `meta`) needs none.
    """

    steps: int = Field(0, ge=0)
    lr: float = Field(1e-5, gt=0)
    batch_size: int = Field(1, gt=0)
    unlearn_weight: float = Field(1.0, ge=0)
    retain_related: float = Field(0.0, ge=0)
    retain_unrelated: float = Field(0.0, ge=0)
    empty_captions: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int = Field(50, gt=0)
    checkpointing: bool = False
    memory: Memory = Memory()


class Attacker(Strict):
    """The simulated finetune: M = `steps` updates with learning rate tau = `lr`; none (tau = 0) is plain ascent.

    `required_drop` halves tau until one step really lowers the attacker's own loss by that share.
    `space` is where it moves: every UNet weight, the weights the adapter touches, or the adapter itself.
    """

    rule: Literal["sgd", "momentum", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    steps: int = Field(1, ge=0)
    space: Literal["full", "subset", "adapter"] = "adapter"
    empty_captions: float = Field(0.0, ge=0, le=1)
    required_drop: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _drop_is_of_gradient_steps(self) -> Attacker:
        if self.required_drop and self.rule == "adamw":
            raise ValueError("required_drop tries gradient steps, which AdamW does not take; set it to 0 or use sgd")
        return self


class Meta(Strict):
    """The meta objective, paper eq. 3, and how its gradient is taken; gamma_2 = `weight`."""

    weight: float = Field(gt=0)
    order: Literal["exact", "first_order"] | int = "exact"
    hvp: Literal["auto", "reverse_over_reverse", "pair_checkpoint", "finite_difference"] = "auto"
    attacker: Attacker
    forget: float = 1.0
    related: float = 1.0
    unrelated: float = 1.0
    keep_unconditional: float = Field(0.0, ge=0)
    restore_related: float | None = None
    restore_unrelated: float | None = None
    bound: Literal["none", "cap", "tanh", "log"] = "none"
    bound_at: float = Field(1.0, gt=0)
    log_conflict: bool = False  # also log the cosine of the paper's Figure 6: two more gradients a step
    max_grad_norm: float = Field(1.0, gt=0)
