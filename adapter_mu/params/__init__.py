"""Which parameters may move, and the adapters that move them."""

from adapter_mu.params.adapters import Adapter, load_adapter, make_adapter, pull_back, save_adapter
from adapter_mu.params.attached import AttachedLora
from adapter_mu.params.dense import DenseDelta
from adapter_mu.params.functional import call_with
from adapter_mu.params.lora import Lora
from adapter_mu.params.low_rank import LowRank
from adapter_mu.params.outer_optimizer import load_optimizer_state, optimizer_state, outer_optimizer
from adapter_mu.params.streaming import streamed
from adapter_mu.params.subsets import SUBSETS, describe, select

__all__ = [
    "SUBSETS",
    "Adapter",
    "AttachedLora",
    "DenseDelta",
    "Lora",
    "LowRank",
    "call_with",
    "describe",
    "load_adapter",
    "load_optimizer_state",
    "make_adapter",
    "optimizer_state",
    "outer_optimizer",
    "pull_back",
    "save_adapter",
    "select",
    "streamed",
]
