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
from adapter_mu.methods.closed_form_rows import ConceptMethod, ConceptOptions, Rows, embeddings, preserve_matrix
from adapter_mu.methods.registry import register
from adapter_mu.methods.uce import uce_edit
from adapter_mu.models import LoadedModel
from adapter_mu.params import LowRank
from adapter_mu.recipe import Strict


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
    """

    epochs: int = Field(3, gt=0)
    embedding_lambda: float = Field(0.1, ge=0)
    edit: EditScales = EditScales()
    values: Values = "edited"


@register("rece", ReceOptions)
class Rece(ConceptMethod):
    """All concepts' embeddings have every row of the prompt, whatever rows the UCE start works on."""

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
        for _ in range(options.epochs):
            for concept, guide in zip(options.erase, options.guides, strict=True):
                edit = self._against(model, gram, edit, concept, guide)
        return low_rank(model.unet, edit)

    def _against(self, model: LoadedModel, gram: Tensor, edit: Edit, concept: str, guide: str) -> Edit:
        """The edit with the embedding that brings `concept` back erased too."""
        options, scales = self.options, self.options.edit
        original, guides = embeddings(model, [concept, guide])
        found = adversarial_rows(edit, gram, original, options.embedding_lambda)
        rows: Rows = "paper" if options.rows == "paper" else "legacy"  # a mean or a sum over prompts, every row of each
        kept = preserve_matrix(model, list(dict.fromkeys([guide, *self.preserved])), rows, scales.preserve_scale)
        return solve(edit, Erasure(found, guides, scales.erase_scale), kept, scales.lamb, options.values)


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
    return factorised(normal, "the matrix of the adversarial embedding")(original @ gram @ matrix)
