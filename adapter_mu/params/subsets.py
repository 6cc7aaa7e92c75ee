"""Which parameters may move."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from adapter_mu.errors import RecipeError

# The embeddings of time and size, and the last convolution, which ESD-u leaves alone.
_OUTSIDE_ESD_U = ("conv_out.", "time_embedding.", "add_embedding.")

SUBSETS: dict[str, Callable[[str], bool]] = {
    "cross_attention_kv": lambda name: "attn2.to_k." in name or "attn2.to_v." in name,
    "cross_attention": lambda name: "attn2" in name,
    "non_cross_attention": lambda name: "attn2" not in name and not name.startswith(_OUTSIDE_ESD_U),
    "self_attention": lambda name: "attn1" in name,
    "full": lambda name: True,
}


def select(module: nn.Module, subset: str) -> dict[str, nn.Parameter]:
    """The parameters of a UNet that belong to a subset, by name.

    `cross_attention_kv` is what UCE and RECE edit. `cross_attention` is ESD-x, `full` is ESD-f, and
    `non_cross_attention` is ESD-u by the rule of the original ESD code and its diffusers port (the paper's baselines):
    everything but cross attention, `conv_out`, the time embedding and SDXL's `add_embedding`. Biases, norms and
    `conv_norm_out` belong to it; the newer official ESD code, which trains no norms, differs. Any other word is
    searched for in the names as a regular expression.

    Raises:
        RecipeError: nothing matches, or the expression is malformed.
    """
    chosen = SUBSETS.get(subset) or _matcher(subset)
    selected = {name: parameter for name, parameter in module.named_parameters() if chosen(name)}
    if not selected:
        raise RecipeError(
            f"subset {subset!r} selects no parameter of this model: "
            f"use one of {', '.join(SUBSETS)}, or a regular expression over parameter names"
        )
    return selected


def _matcher(expression: str) -> Callable[[str], bool]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise RecipeError(f"subset {expression!r} is neither a known name nor a regular expression: {error}") from error
    return lambda name: pattern.search(name) is not None


def describe(module: nn.Module, subset: str) -> str:
    """For people: "cross_attention_kv: 16 tensors, 0.34 M parameters"; RecipeError as for `select`."""
    selected = select(module, subset)
    count = sum(parameter.numel() for parameter in selected.values())
    return f"{subset}: {len(selected)} tensor{'s' if len(selected) > 1 else ''}, {count / 1e6:.2f} M parameters"
