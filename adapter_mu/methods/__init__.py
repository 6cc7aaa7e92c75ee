"""Unlearning methods, one file each, registered by name; a third party registers its own the same way."""

from adapter_mu.methods.registry import (
    GradientMethod,
    Method,
    RememberingMethod,
    StartMethod,
    draws,
    method_names,
    new_method,
    register,
    trains,
)

__all__ = [
    "GradientMethod",
    "Method",
    "RememberingMethod",
    "StartMethod",
    "draws",
    "method_names",
    "new_method",
    "register",
    "trains",
]
