"""Which parameters each subset names."""

from __future__ import annotations

import pytest
from cases import tiny_unet

from adapter_mu.errors import RecipeError
from adapter_mu.params import SUBSETS, describe, select

MODELS = ["sd", "sdxl"]


@pytest.mark.parametrize("model", MODELS)
def test_key_value_subset_is_the_two_projections_of_every_cross_attention(model: str) -> None:
    unet = tiny_unet(model)
    layers = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert len(layers) > 2
    assert set(select(unet, "cross_attention_kv")) == {f"{layer}.to_{x}.weight" for layer in layers for x in "kv"}


@pytest.mark.parametrize("model", MODELS)
def test_subsets_split_the_model(model: str) -> None:
    unet = tiny_unet(model)
    chosen = {name: set(select(unet, name)) for name in SUBSETS}
    assert chosen["full"] == {name for name, _ in unet.named_parameters()}
    assert chosen["cross_attention_kv"] < chosen["cross_attention"]
    assert chosen["self_attention"] < chosen["non_cross_attention"]
    left_out = chosen["full"] - chosen["cross_attention"] - chosen["non_cross_attention"]
    assert {name.split(".")[0] for name in left_out} == {"conv_out", "time_embedding"} | (
        {"add_embedding"} if model == "sdxl" else set()
    )


def test_esd_u_keeps_what_merely_looks_like_a_time_embedding() -> None:
    chosen = select(tiny_unet("sd"), "non_cross_attention")
    assert "conv_norm_out.weight" in chosen
    assert "mid_block.resnets.0.time_emb_proj.bias" in chosen


def test_selected_parameters_are_the_module_s_own() -> None:
    unet = tiny_unet("sd")
    assert all(parameter is unet.get_parameter(name) for name, parameter in select(unet, "full").items())


def test_any_other_word_is_a_regular_expression() -> None:
    assert set(select(tiny_unet("sd"), r"^conv_(in|out)\.bias$")) == {"conv_in.bias", "conv_out.bias"}


def test_describe() -> None:
    unet = tiny_unet("sd")
    assert describe(unet, "cross_attention_kv") == "cross_attention_kv: 8 tensors, 0.00 M parameters"
    assert describe(unet, "conv_in.bias") == "conv_in.bias: 1 tensor, 0.00 M parameters"


@pytest.mark.parametrize("subset", ["cross_atention", "attn2.to_(k"])
def test_refuses_what_selects_nothing(subset: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        select(tiny_unet("sd"), subset)
    assert repr(subset) in str(refusal.value)
