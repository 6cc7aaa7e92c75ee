"""A run with checkpointing makes its products by pairs and learns the same."""

from __future__ import annotations

from typing import Any

import pytest
from oracles import relative_error
from tiny_pipelines import tiny_model
from tiny_runs import nudge, tiny_recipe, tiny_sets

from adapter_mu.errors import ModelError
from adapter_mu.meta import pair_rules
from adapter_mu.models import prepare_for_first_order
from adapter_mu.params import AttachedLora, make_adapter
from adapter_mu.recipe import Recipe
from adapter_mu.simulate import MetaObjective
from adapter_mu.stages.products import beside_the_base, check_pairs, prepare_products


def recipe(kind: str, hvp: str, checkpointing: bool) -> Recipe:
    meta = {"weight": 0.1, "hvp": hvp, "attacker": {"lr": 0.05, "steps": 2}, "keep_unconditional": 1.0}
    adapter = {"kind": kind, "subset": "attn", "rank": 2}
    return tiny_recipe(meta=meta, adapter=adapter, train={"checkpointing": checkpointing})


@pytest.mark.parametrize("kind", ["lora", "dense"])
@pytest.mark.parametrize("model_kind", ["sd", "sdxl"])
def test_meta_gradient_of_a_run_is_the_same_with_pairs(model_kind: str, kind: str) -> None:
    model = tiny_model(model_kind)
    model.unet.double()
    found: list[Any] = []
    for hvp, checkpointing, pairs in (("auto", False, False), ("auto", True, True), ("pair_checkpoint", False, True)):
        made = recipe(kind, hvp, checkpointing)
        assert prepare_products(model.unet, made) == pairs
        own = made.adapter
        adapter = make_adapter(model.unet, own.kind, own.subset, rank=own.rank)
        nudge(adapter.parameters())
        if pairs:
            adapter = beside_the_base(model.unet, made, adapter, pairs)
            assert isinstance(adapter, AttachedLora) == (kind == "lora")
        assert made.meta is not None
        found.append(MetaObjective(model, adapter, tiny_sets(model), made.meta, 2, seed=0).gradient(0)[0])
        prepare_for_first_order(model.unet)
    assert relative_error(found[1], found[0]) < 1e-6  # the sets are float32
    assert relative_error(found[2], found[0]) < 1e-6


def test_training_is_refused_when_the_product_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in [f for f in pair_rules.RULES if getattr(f, "__name__", "") == "layer_norm"]:
        monkeypatch.delitem(pair_rules.RULES, function)
    with pytest.raises(ModelError, match="at fault: LayerNorm: relative error"):
        prepare_products(tiny_model("sd").unet, recipe("lora", "pair_checkpoint", False))


def test_half_precision_passes_the_check() -> None:
    unet = tiny_model("sdxl").unet.bfloat16()
    prepare_for_first_order(unet)
    prepare_products(unet, recipe("lora", "pair_checkpoint", False))
    check_pairs(unet)
