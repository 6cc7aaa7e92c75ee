"""A plan is measured, not guessed: against real tensors at small sizes, and the numbers for SDXL at 1024x1024."""

from __future__ import annotations

import pytest

from adapter_mu.errors import RecipeError
from adapter_mu.models import load_config
from adapter_mu.plan import GIB, as_table, card_bytes, plan
from adapter_mu.recipe import Recipe, load_recipe


def recipe(*changes: str) -> Recipe:
    paired = ["arms=null", "train.batch_size=1", "train.checkpointing=true", "meta.attacker.space=adapter"]
    return load_recipe("shapes/demo", [*paired, "meta.hvp=auto", "meta.order=exact", *changes])


@pytest.mark.parametrize(("base", "rows"), [("shapes-sd", 1), ("shapes-sd", 3), ("shapes-sdxl", 1)])
def test_a_plan_agrees_with_live_bytes_of_real_tensors(base: str, rows: int) -> None:
    made = recipe(f"base.model={base}", "adapter.kind=lora", f"train.batch_size={rows}")
    predicted, measured = plan(made), plan(made, "cpu")
    assert measured.always == predicted.always
    for stage, size in predicted.transient.items():
        assert size == pytest.approx(measured.transient[stage], rel=0.1), stage


def test_the_table_says_whether_the_card_fits() -> None:
    found = plan(recipe("base.model=shapes-sd"))
    assert "24 GiB card: fits" in as_table(found, card_bytes("24GB"))
    assert "0.01 GiB card: does not fit" in as_table(found, card_bytes("0.01GB"))
    with pytest.raises(RecipeError, match="write it like 24GB"):
        card_bytes("big")


def test_a_base_that_is_not_here_is_refused() -> None:
    with pytest.raises(Exception, match="no UNet configuration of 'nobody/nothing'"):
        load_config("nobody/nothing")


@pytest.mark.slow
@pytest.mark.parametrize(("subset", "product", "whole"), [("attn1|attn2", 1.9, 8.0), ("non_cross_attention", 1.9, 9.0)])
def test_sdxl_with_lora_at_1024(subset: str, product: float, whole: float) -> None:
    changes = "base.model=sdxl", "base.dtype=bf16", "adapter.kind=lora", "meta.attacker.steps=3"
    sdxl = recipe(*changes, f"adapter.subset={subset}")
    found = plan(sdxl)
    assert found.transient["product"] <= product * GIB
    assert found.peak <= whole * GIB
