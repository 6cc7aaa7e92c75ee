"""The mathematics of meta-unlearning: attackers, Hessian-vector products, the meta gradient and its objective."""

from adapter_mu.meta.adjoint import MetaGradient, meta_gradient
from adapter_mu.meta.attacker import SGD, AdamW, Attacker, Momentum
from adapter_mu.meta.hvp import PRODUCTS, product
from adapter_mu.meta.objective import MetaWeights, attacked_terms, bounded, current_terms, total
from adapter_mu.meta.step_size import backtracked_lr

__all__ = [
    "PRODUCTS",
    "SGD",
    "AdamW",
    "Attacker",
    "MetaGradient",
    "MetaWeights",
    "Momentum",
    "attacked_terms",
    "backtracked_lr",
    "bounded",
    "current_terms",
    "meta_gradient",
    "product",
    "total",
]
