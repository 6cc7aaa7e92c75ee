"""RECE: its embedding solves its least squares, and its weights equal a dense NumPy loop over the matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closed_form_oracles import (
    PRESERVED,
    WORLDS,
    Array,
    Problem,
    adversarial,
    assert_equal,
    edited,
    in_float64,
    matrices,
    merged,
    rows_of,
    shares,
)

from adapter_mu.errors import RecipeError
from adapter_mu.methods import new_method
from adapter_mu.methods.closed_form import energy, key_value_weights
from adapter_mu.methods.closed_form_rows import embeddings
from adapter_mu.methods.rece import Rece, ReceOptions, adversarial_rows
from adapter_mu.methods.registry import StartMethod
from adapter_mu.methods.uce import UceOptions, uce_edit
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.params import LowRank
from adapter_mu.shapes.vocabulary import COLOURS, SHAPES

CONCEPTS, GUIDES = ["ring", "a star"], ["", "a cross"]
EPOCHS, LAMBDA = 2, 0.05


def start(model: LoadedModel, **options: Any) -> LowRank:
    return Rece(ReceOptions(**{"erase": ["ring"], **options})).start(model, [])


def rece_by_matrices(model: LoadedModel, values: str) -> dict[str, Array]:
    """UCE with the public scales, then `EPOCHS` rounds over the concepts, as the paper's section 3.2 says it."""
    base = matrices(model)
    old, new, kept = (np.concatenate(rows_of(model, texts)) for texts in (CONCEPTS, GUIDES, PRESERVED))
    first = Problem(old, new, kept, erase_weight=1 / 2, preserve_weight=1 / 3, lamb=0.5)
    weights = {name: edited(weight, weight, first) for name, weight in base.items()}
    for _ in range(EPOCHS):
        for concept, guide in zip(CONCEPTS, GUIDES, strict=True):
            original, target = rows_of(model, [concept, guide])
            found = adversarial(list(weights.values()), list(base.values()), original, LAMBDA)
            kept = np.concatenate(rows_of(model, [guide, *PRESERVED]))
            problem = Problem(found, target, kept, erase_weight=0.9, preserve_weight=0.2 / 4, lamb=0.3)
            weights = {
                name: edited(weight, weight if values == "edited" else base[name], problem)
                for name, weight in weights.items()
            }
    return weights


def options(values: str) -> dict[str, Any]:
    scales = {"erase_scale": 0.9, "preserve_scale": 0.2, "lamb": 0.3}
    shared = {"erase": CONCEPTS, "guide": GUIDES, "preserve": PRESERVED, "epochs": EPOCHS}
    return shared | {"embedding_lambda": LAMBDA, "edit": scales, "values": values}


@pytest.mark.parametrize("values", ["edited", "original"])
@pytest.mark.parametrize("world", WORLDS)
def test_weights_are_those_of_a_dense_loop(world: str, values: str) -> None:
    model = load_model(world)
    assert_equal(merged(start(model, **options(values))), rece_by_matrices(model, values), 1e-6)


@pytest.mark.parametrize("values", ["edited", "original"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_factors_are_the_dense_edit(kind: str, values: str) -> None:
    model = in_float64(kind)
    assert_equal(merged(start(model, **options(values))), rece_by_matrices(model, values), 1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_the_embedding_solves_its_least_squares(world: str) -> None:
    model = load_model(world)
    edit = uce_edit(model, UceOptions(erase=["ring"]), [])
    original = embeddings(model, ["ring"])[0]
    gram = energy(key_value_weights(model.unet))
    found = adversarial_rows(edit, gram, original, LAMBDA).requires_grad_(True)

    base = [torch.from_numpy(weight) for weight in matrices(model).values()]
    current = [weight @ edit.matrix() for weight in base]

    def distance(rows: torch.Tensor) -> torch.Tensor:
        pairs = zip(current, base, strict=True)
        return sum((rows @ w.T - original @ b.T).square().sum() for w, b in pairs) + LAMBDA * rows.square().sum()  # type: ignore[return-value]

    gradient, at_start = (
        torch.autograd.grad(distance(rows), rows)[0].norm() for rows in (found, original.clone().requires_grad_(True))
    )
    assert gradient < 1e-10 * at_start
    arrays = ([w.numpy() for w in current], [w.numpy() for w in base], original.numpy())
    np.testing.assert_allclose(found.detach().numpy(), adversarial(*arrays, LAMBDA), rtol=1e-8, atol=1e-8)
    assert distance(found) < distance(original)


def test_each_epoch_weakens_the_embedding_that_brings_the_concept_back() -> None:
    """What the best embedding still recovers of keys and values falls with the epochs."""
    model = load_model("shapes-sd")
    original = rows_of(model, ["ring"])[0]
    base = list(matrices(model).values())

    def recovered(current: list[Array]) -> float:
        rows = adversarial(current, base, original, 0.1)
        pairs = list(zip(current, base, strict=True))
        return float(sum(np.square(rows @ w.T - original @ b.T).sum() for w, b in pairs))

    distances = [recovered(list(merged(start(model, epochs=epochs)).values())) for epochs in (1, 3, 6)]
    assert distances == sorted(distances) and distances[0] > recovered(base)


@pytest.mark.parametrize("values", ["edited", "original"])
def test_rank_is_at_most_the_erased_rows_of_all_epochs(values: str) -> None:
    model = load_model("shapes-sdxl")  # width 112, 20 tokens
    adapter = start(model, epochs=3, values=values, preserve=PRESERVED * 20)
    ranks = {len(tensor) for name, tensor in adapter.state_dict().items() if "lora_A" in name}
    assert len(ranks) == 1 and max(ranks) <= 4 * 20


def test_it_is_a_start_method_and_checks_its_options() -> None:
    assert isinstance(new_method("rece", {"erase": ["ring"], "edit": {"lamb": 0.2}}), StartMethod)
    for wrong, sentence in (({"epochs": 0}, "method.epochs"), ({"edit": {"scale": 1}}, "method.edit.scale")):
        with pytest.raises(RecipeError, match=sentence):
            new_method("rece", {"erase": ["ring"], **wrong})


@pytest.mark.slow
def test_the_ring_is_gone_and_the_rest_stays() -> None:
    model = load_model("shapes-sd")
    benign = [shape for shape in SHAPES if shape != "ring"]
    coloured = [f"{opening} {c} {s}" for opening in ("a", "a photo of a") for c in COLOURS for s in benign]
    edit = start(model, guide="circle", rows="legacy", preserve=coloured + benign, epochs=2)
    ring, kept = shares(model, edit)
    assert ring <= 10 and kept >= 90
