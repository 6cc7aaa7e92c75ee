"""RECE, reliable and efficient concept erasure (Gong et al. 2024): UCE against its own adversarial embeddings.

The paper's section 3.2: start from UCE, then repeat for every concept: find the embedding c' that brings it back,
    minimise over c'  sum_i |W~_i T(c') - W*_i T(c_f)|^2 + lambda |T(c')|^2,
and erase c' by UCE from the current matrices W~. Both have closed forms that see the matrices only through
sum_i W*_i^T W*_i. The public code keeps the best epoch by a validation set; here every epoch counts, as in the paper.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.methods.closed_form import (
    Edit,
    Erasure,
    Values,
    energy,
    factorised,
    key_value_weights,
    low_rank,
    solve,
)
from adapter_mu.methods.closed_form_rows import (
    ConceptMethod,
    ConceptOptions,
    Rows,
    embeddings,
    preserve_weight,
    row_products,
)
from adapter_mu.methods.registry import register
from adapter_mu.methods.uce import uce_edit
from adapter_mu.models import LoadedModel
from adapter_mu.params import LowRank
from adapter_mu.recipe import Strict

_EVERY_ROW: Rows = "paper"  # an embedding c' has all rows of its prompt, whatever rows the UCE start works on


class EditScales(Strict):
    """Scales of every later edit (the public code's lambda_1 = lambda_2 = 0.1)."""

    erase_scale: float = Field(1.0, gt=0)
    preserve_scale: float = Field(0.1, ge=0)
    lamb: float = Field(0.1, ge=0)


class ReceOptions(ConceptOptions):
    """The options of the UCE start, `epochs` over all concepts, and those of an epoch.

    `embedding_lambda` is the paper's lambda, 0.1 in the public code for nudity and easy objects, 0.001 for styles.
    `edit` holds s_e, s_p and lamb of the later edits, which preserve the guide and the preserved concepts. `values`
    says which matrices make the values they aim at: the current ones (`edited`, public code) or W* (`original`, paper).
    Aiming at W* also undoes earlier edits wherever preserved concepts reach: with `original` preserve few of them.
    """

    epochs: int = Field(3, gt=0)
    embedding_lambda: float = Field(0.1, ge=0)
    edit: EditScales = EditScales()
    values: Values = "edited"


@register("rece", ReceOptions)
class Rece(ConceptMethod):
    """UCE for all concepts, then epochs over them one by one."""

    def __init__(self, options: ReceOptions) -> None:
        super().__init__(options)
        self.options = options

    def start(self, model: LoadedModel, prompts: list[Prompt]) -> LowRank:
        """The edit as an exact adapter of the base's UNet; `prompts` are not used, because concepts are words here.

        Raises:
            RecipeError: the equations have no finite solution, or nothing changes.
        """
        options, gram = self.options, energy(key_value_weights(model.unet))
        edit = uce_edit(model, options, self.preserved)
        kept = row_products(model, self.preserved, _EVERY_ROW)
        for _ in range(options.epochs):
            for concept, guide in zip(options.erase, options.guides, strict=True):
                original, guides = embeddings(model, [concept, guide])
                found = adversarial_rows(edit, gram, original, options.embedding_lambda)
                erased = Erasure(found, guides, options.edit.erase_scale)
                edit = solve(edit, erased, self._preserve(model, kept, guide), options.edit.lamb, options.values)
        return low_rank(model.unet, edit)

    def _preserve(self, model: LoadedModel, kept: Tensor, guide: str) -> Tensor:
        """R of a later edit: every row of the preserved concepts (`kept`) and of the guide."""
        more = [] if guide in self.preserved else [guide]
        rows: Rows = "paper" if self.options.rows == "paper" else "legacy"  # a mean or a sum over prompts
        weight = preserve_weight(len(self.preserved) + len(more), rows, self.options.edit.preserve_scale)
        return weight * (kept + row_products(model, more, _EVERY_ROW))


def adversarial_rows(edit: Edit, gram: Tensor, original: Tensor, embedding_lambda: float) -> Tensor:
    """The c' that minimise sum_i |W*_i P c' - W*_i c|^2 + lambda |c'|^2, row by row.

    Args:
        edit: P.
        gram: sum_i W*_i^T W*_i, (width, width).
        original: the c, (N, width).
        embedding_lambda: lambda.

    Returns:
        (P^T gram P + lambda I)^-1 P^T gram c for every row c, (N, width).
    """
    matrix = edit.matrix()
    normal = matrix.T @ gram @ matrix
    normal.diagonal().add_(embedding_lambda)
    times_inverse = factorised(normal, "the adversarial embedding's matrix", "embedding_lambda")
    return times_inverse(original @ gram @ matrix)
