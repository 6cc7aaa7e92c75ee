"""UCE, unified concept editing (Gandikota et al. 2024): keys and values of a concept become those of its guide.

The paper's section 3.2: minimise over every cross-attention key and value matrix W
    E |W T(c_f) - W* T(guide)|^2 + lambda_1 E |W T(c_r) - W* T(c_r)|^2 + lambda_2 |W - W*|^2
with c_f erased and c_r preserved. One linear solve, shared by all matrices, gives the edit exactly and at low rank.

SDXL: T is the hidden states of both text encoders side by side, as its pipeline makes them. SDXL also tells its UNet
the pooled embedding of the second encoder, through `add_embedding` and not through attention, so no key or value can
change what it says: this path is left as it is, as in both public versions, and a concept may survive there.
"""

from __future__ import annotations

from adapter_mu.data.prompts import Prompt
from adapter_mu.methods.closed_form import Edit, low_rank, solve
from adapter_mu.methods.closed_form_rows import ConceptMethod, ConceptOptions, erasure, preserve_matrix
from adapter_mu.methods.registry import register
from adapter_mu.models import LoadedModel
from adapter_mu.params import LowRank


class UceOptions(ConceptOptions):
    """Concepts, rows and scales; the scales' defaults are the public code's (the paper takes them over)."""


@register("uce", UceOptions)
class Uce(ConceptMethod):
    """One solve for all concepts."""

    def __init__(self, options: UceOptions) -> None:
        super().__init__(options)
        self.options = options

    def start(self, model: LoadedModel, prompts: list[Prompt]) -> LowRank:
        """The edit as an exact adapter of the base's UNet; `prompts` are not used, because concepts are words here.

        Raises:
            RecipeError: the equations have no finite solution, or nothing changes.
        """
        return low_rank(model.unet, uce_edit(model, self.options, self.preserved))


def uce_edit(model: LoadedModel, options: ConceptOptions, preserved: list[str]) -> Edit:
    """UCE's solution P: every matrix W* becomes W* P."""
    erased = erasure(model, options.erase, options.guides, options.rows, options.erase_scale)
    kept = preserve_matrix(model, preserved, options.rows, options.preserve_scale)
    return solve(Edit.none(len(kept)), erased, kept, options.lamb)
