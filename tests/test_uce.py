"""UCE: its solution minimises its objective, is exactly low-rank, and equals a dense NumPy solution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_form_oracles import (
    PRESERVED,
    WORLDS,
    Problem,
    assert_equal,
    edited,
    in_float64,
    matrices,
    merged,
    rows_of,
    shares,
)
from tiny_pipelines import tiny_model
from torch import Tensor

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.methods import new_method
from adapter_mu.methods.closed_form import Edit, Erasure, factorised, solve
from adapter_mu.methods.closed_form_rows import erasure, last_subject_tokens, preserve_matrix
from adapter_mu.methods.registry import StartMethod
from adapter_mu.methods.uce import Uce, UceOptions
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.params import LowRank, load_adapter, save_adapter
from adapter_mu.shapes.vocabulary import COLOURS, SHAPES


def start(model: LoadedModel, **options: Any) -> LowRank:
    return Uce(UceOptions(**{"erase": ["ring"], **options})).start(model, [])


@pytest.mark.parametrize("world", WORLDS)
def test_weights_are_the_dense_solution_of_the_papers_equation(world: str) -> None:
    """Means over two erased and three preserved prompts, every row of each."""
    model = load_model(world)
    adapter = start(
        model, erase=["ring", "a ring"], guide=["", "a circle"], preserve=PRESERVED, preserve_scale=0.7, lamb=0.3
    )
    rows = [np.concatenate(rows_of(model, texts)) for texts in (["ring", "a ring"], ["", "a circle"], PRESERVED)]
    problem = Problem(*rows, erase_weight=1 / 2, preserve_weight=0.7 / 3, lamb=0.3)
    expected = {name: edited(weight, weight, problem) for name, weight in matrices(model).items()}
    assert_equal(merged(adapter), expected, 1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_subject_rows_are_one_a_concept(world: str) -> None:
    """The newer public code: sums, the start token for an empty guide."""
    model = load_model(world)
    adapter = start(model, erase=["a ring", "star"], preserve=PRESERVED, rows="subject")
    old = np.stack([rows_of(model, ["a ring"])[0][2], rows_of(model, ["star"])[0][1]])
    new = np.stack([rows_of(model, [""])[0][0]] * 2)
    last = [1, 5, 2]  # circle | a photo of a crescent | red square, after the start token
    kept = np.stack([rows_of(model, [text])[0][i] for text, i in zip(PRESERVED, last, strict=True)])
    problem = Problem(old, new, kept, erase_weight=1.0, preserve_weight=1.0, lamb=0.5)
    assert_equal(merged(adapter), {n: edited(w, w, problem) for n, w in matrices(model).items()}, 1e-6)


def test_legacy_rows_are_shifted_and_keep_the_empty_prompt() -> None:
    """From "ring", the second token of "a ring", to the end; the guide's rows from its own last token."""
    model = load_model("shapes-sd")
    adapter = start(model, erase=["a ring"], guide="circle", preserve=PRESERVED, rows="legacy")
    old, new = rows_of(model, ["a ring", "circle"])
    kept = np.concatenate(rows_of(model, ["", *PRESERVED]))
    problem = Problem(old[2:], new[1:-1], kept, erase_weight=1.0, preserve_weight=1 / 4, lamb=0.5)
    assert_equal(merged(adapter), {n: edited(w, w, problem) for n, w in matrices(model).items()}, 1e-6)


def test_legacy_preserve_scale_has_a_floor() -> None:
    model = tiny_model("sd")
    many = ["", *(f"thing {i}" for i in range(19))]
    default, given = (preserve_matrix(model, many, "legacy", scale) for scale in (None, 1.0))
    torch.testing.assert_close(default, 0.1 * given)


def objective(matrix: Tensor, base: Tensor, old: Tensor, new: Tensor, kept: Tensor, scales: list[float]) -> Tensor:
    erase, preserve, lamb = scales
    moved = (old @ matrix.T - new @ base.T).square().sum() / 2
    stayed = (kept @ matrix.T - kept @ base.T).square().sum() / 3
    return erase * moved + preserve * stayed + lamb * (matrix - base).square().sum()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_objective_has_no_gradient_at_the_solution(kind: str) -> None:
    model = in_float64(kind)
    adapter = start(model, erase=["ring", "red"], preserve=PRESERVED, erase_scale=1.3, preserve_scale=0.7, lamb=0.2)
    texts = (["ring", "red"], ["", ""], PRESERVED)
    rows = [torch.from_numpy(np.concatenate(rows_of(model, part))) for part in texts]
    base = dict(model.unet.named_parameters())
    for name, weight in adapter.materialize(adapter.state_dict()).items():
        sizes = []
        for point in (weight, base[name]):
            leaf = point.detach().clone().requires_grad_(True)
            loss = objective(leaf, base[name], *rows, [1.3, 0.7, 0.2])
            sizes.append(float(torch.autograd.grad(loss, leaf)[0].norm()))
        assert sizes[0] < 1e-12 * sizes[1], name


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_factors_are_the_dense_edit(kind: str) -> None:
    model = in_float64(kind)
    adapter = start(model, preserve=PRESERVED)
    rows = [np.concatenate(rows_of(model, texts)) for texts in (["ring"], [""], PRESERVED)]
    problem = Problem(*rows, erase_weight=1.0, preserve_weight=1 / 3, lamb=0.5)
    expected = {name: edited(weight, weight, problem) for name, weight in matrices(model).items()}
    assert_equal(merged(adapter), expected, 1e-12)


def test_rank_is_at_most_the_erased_rows_and_down_is_shared() -> None:
    model = load_model("shapes-sd")
    tokens = rows_of(model, [""]).shape[1]
    ranks = {"paper": 2 * (tokens - 1), "subject": 2, "legacy": 2 * (tokens - 1)}
    for rows, rank in ranks.items():  # paper: the start token's row is the guide's own
        adapter = start(model, erase=["ring", "star"], preserve=PRESERVED * 100, rows=rows)
        downs = [tensor for name, tensor in adapter.state_dict().items() if "lora_A" in name]
        assert {len(down) for down in downs} == {rank}
        assert all(torch.equal(down, downs[0]) for down in downs)


def test_rank_never_exceeds_the_width() -> None:
    """More rows than dimensions: the same edit, in factors no larger than it."""
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 30, 8, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(8, 8, dtype=torch.float64)
    found = solve(Edit.none(8), Erasure(old, new, 1.0), nothing, 0.1)
    assert found.up.shape == (8, 8)
    identity = np.eye(8)
    problem = Problem(old.numpy(), new.numpy(), np.zeros((0, 8)), 1.0, 0.0, 0.1)
    np.testing.assert_allclose(found.matrix().numpy(), edited(identity, identity, problem), atol=1e-12)


def test_hundreds_of_preserved_concepts_stay_where_they_are() -> None:
    """Their mean counts, so the erased concept still moves; the more they weigh, the less they move."""
    model = load_model("shapes-sd")
    colours, shapes = ("red", "green", "blue"), ("circle", "star", "cross", "square")
    many = [f"a {c} {s} on a {b} background" for c in colours for s in shapes for b in ("black", "gray", "white")] * 10
    name, base = next(iter(matrices(model).items()))
    old, empty, kept = (rows_of(model, [text])[0] for text in ("ring", "", many[0]))
    moved = {}
    for scale in (0.0, 10.0):
        change = merged(start(model, preserve=many, preserve_scale=scale))[name] - base
        left = np.linalg.norm((old @ (base + change).T - empty @ base.T)[1]) / np.linalg.norm(
            ((old - empty) @ base.T)[1]
        )
        moved[scale] = (np.linalg.norm(kept @ change.T), left)
    assert len(many) == 360
    assert moved[10.0][0] < 0.2 * moved[0.0][0]
    assert moved[10.0][1] < 0.7


def test_last_subject_token() -> None:
    model = load_model("shapes-sd")
    texts = ["", "ring", "a ring", "a photo of a ring", "a ring " * 30]
    assert last_subject_tokens(model, texts).tolist() == [0, 1, 2, 5, 18]


def test_pairs_are_of_equal_length_whichever_is_longer() -> None:
    model = load_model("shapes-sd")
    for concept, guide in (("ring", "a photo of a circle"), ("a photo of a ring", "circle")):
        rows = erasure(model, [concept], [guide], "legacy", 1.0)
        assert rows.contexts.shape == rows.guides.shape == (20 - 5, 64)


def test_the_base_is_not_changed_and_the_edit_can_be_saved(tmp_path: Path) -> None:
    model = load_model("shapes-sd")
    before = {name: weight.copy() for name, weight in matrices(model).items()}
    method = new_method("uce", {"erase": ["ring"]})
    assert isinstance(method, StartMethod)
    adapter = method.start(model, [])
    assert isinstance(adapter, LowRank)
    save_adapter(adapter, tmp_path / "edit.safetensors")
    again = load_adapter(model.unet, tmp_path / "edit.safetensors")
    assert isinstance(again, LowRank) and again.kind == "low_rank" and again.subset == "cross_attention_kv"
    assert_equal(merged(again), merged(adapter), 1e-30)
    assert_equal(matrices(model), before, 1e-30)


def test_a_half_precision_base_is_edited_in_float32() -> None:
    model = tiny_model("sd")
    model.unet.to(torch.bfloat16)
    assert {tensor.dtype for tensor in start(model).state_dict().values()} == {torch.float32}


def test_preserved_concepts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("# benign\ncircle\n\na star\n", encoding="utf-8")
    assert new_method("uce", {"erase": ["ring"], "preserve": str(file)}).preserved == ["circle", "a star"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "method.erase"),
        ({"erase": []}, "method.erase"),
        ({"erase": [" "]}, "empty concept"),
        ({"erase": ["a", "b"], "guide": ["c"]}, "lists 1 for 2"),
        ({"erase": ["a"], "preserve": ["a", "b"]}, "erased and preserved"),
        ({"erase": ["a"], "rows": "all"}, "method.rows"),
        ({"erase": ["a"], "lamb": -1}, "method.lamb"),
        ({"erase": ["a"], "scale": 1}, "unknown key"),
        ({"erase": ["a"], "preserve": "nowhere.txt"}, "nowhere.txt does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        new_method("uce", options)


def forms(shape: str) -> list[str]:
    """A shape in the words of the world's captions."""
    openings = ("a plain {}", "a photo of a big plain {}", "a small striped {}")
    endings = ("", " on a white background", " on a black background")
    pairs = zip(openings, endings, strict=True)
    return [shape, *(f"{opening.format(colour)} {shape}{end}" for opening, end in pairs for colour in COLOURS)]


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "most"), [("circle", 4), ("", 30)])
def test_the_ring_is_gone_and_the_rest_stays(guide: str, most: float) -> None:
    """Towards the circle nothing is left; towards the empty prompt what the world draws unasked, one ring in six."""
    model = load_model("shapes-sd")
    kept = [form for shape in SHAPES if shape != "ring" for form in forms(shape)]
    guides = forms(guide) if guide else ""
    ring, benign = shares(model, start(model, erase=forms("ring"), guide=guides, preserve=kept, lamb=0.1))
    assert ring <= most and benign >= 90


def test_a_guide_that_is_the_concept_is_refused() -> None:
    with pytest.raises(RecipeError, match="equals its guide"):
        start(tiny_model("sd"), guide="ring")


def test_a_quantized_base_is_refused() -> None:
    model = tiny_model("sd")
    for module in model.unet.modules():
        if hasattr(module, "to_k"):
            module.to_k.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match="fp32, bf16 or fp16"):
        start(model)


def test_an_ill_conditioned_matrix_warns_and_a_singular_one_is_refused() -> None:
    with pytest.warns(RuntimeWarning, match=r"condition number of it is 1e\+12.* 3 digits.*raise `knob`"):
        factorised(torch.diag(torch.tensor([1.0, 1e12], dtype=torch.float64)), "it", "knob")
    for diagonal in ([0.0, 1.0], [-1.0, 1.0], [1.0, float("nan")]):
        with pytest.raises(RecipeError, match="it"):
            factorised(torch.diag(torch.tensor(diagonal, dtype=torch.float64)), "it", "knob")


def test_scales_without_a_solution_are_refused() -> None:
    """One short prompt cannot say what becomes of every direction."""
    with pytest.raises(RecipeError, match="raise `lamb`"):
        start(load_model("shapes-sd"), rows="subject", lamb=0.0)
