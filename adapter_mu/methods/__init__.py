"""Unlearning methods, one file each, registered by name; a third party registers its own the same way."""

from adapter_mu.methods.registry import GradientMethod, method_names, new_method, register

__all__ = ["GradientMethod", "method_names", "new_method", "register"]
