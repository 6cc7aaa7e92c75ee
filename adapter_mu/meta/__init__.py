"""The mathematics of meta-unlearning: attackers, Hessian-vector products, the meta gradient and its objective."""

from adapter_mu.meta.adjoint import MetaGradient, meta_gradient
from adapter_mu.meta.attacker import SGD, AdamW, Attacker, Momentum
from adapter_mu.meta.frozen_linear import frozen_linear
from adapter_mu.meta.hvp import PRODUCTS, product
from adapter_mu.meta.objective import MetaWeights, attacked_terms, bounded, current_terms, total
from adapter_mu.meta.pair_checkpoint import PairCheckpoint, pair_block
from adapter_mu.meta.self_check import check_product
from adapter_mu.meta.step_size import backtracked_lr

__all__ = [
    "PRODUCTS",
    "SGD",
    "AdamW",
    "Attacker",
    "MetaGradient",
    "MetaWeights",
    "Momentum",
    "PairCheckpoint",
    "attacked_terms",
    "backtracked_lr",
    "bounded",
    "check_product",
    "current_terms",
    "frozen_linear",
    "meta_gradient",
    "pair_block",
    "product",
    "total",
]
