"""What training sets up: where things lie, in which precision, and that everything is put back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import relative_error
from tiny_pipelines import tiny_model
from tiny_runs import nudge, tiny_recipe, tiny_sets
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.meta import product
from adapter_mu.models import LoadedModel, is_quantized
from adapter_mu.params import AttachedLora, Lora, make_adapter
from adapter_mu.params.streaming import fetches
from adapter_mu.plan.skeleton import with_quantized_layers
from adapter_mu.recipe import Recipe, load_recipe
from adapter_mu.simulate import MetaObjective, batch_loss
from adapter_mu.stages.products import check_memory, set_up, states_device

# The demo with one training step, few small sets and nothing scored.
LEAN = (
    *("arms=null", "evaluate=null", "attacks=null", "data.keep_only_shown=false", "data.sampler.steps=1"),
    *("data.forget.images=2", "data.related.images=2", "data.unrelated.images=2", "train.steps=1"),
    *("train.batch_size=2", "train.checkpointing=true", "method.trajectories=1", "method.sampler_steps=2"),
)


def recipe(kind: str = "lora", **changes: Any) -> Recipe:
    meta = {"weight": 0.1, "attacker": {"lr": 0.05, "steps": 2}, "keep_unconditional": 1.0} | changes.pop("meta", {})
    adapter = {"kind": kind, "subset": "attn", "rank": 2}
    train = {"checkpointing": True} | changes.pop("train", {})
    return tiny_recipe(meta=meta, adapter=adapter, train=train, **changes)


def new_adapter(model: LoadedModel, made: Recipe) -> Any:
    a = made.adapter
    adapter = make_adapter(model.unet, a.kind, a.subset, rank=a.rank, device=states_device(made, model))
    nudge(adapter.parameters(), 0.02)
    return adapter


def meta_gradient(model: LoadedModel, made: Recipe, apart: bool = False) -> dict[str, Tensor]:
    adapter, data = new_adapter(model, made), tiny_sets(model)
    assert made.meta is not None
    with set_up(model, made, adapter) as (ready, own):
        return MetaObjective(ready, own, data, made.meta, 2, 0, apart=apart).gradient(0)[0]


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_terms_one_by_one_give_the_same_gradient(kind: str) -> None:
    model = tiny_model("sd")
    model.unet.double()
    made = recipe(kind)
    assert relative_error(meta_gradient(model, made, True), meta_gradient(model, made)) < 1e-6  # the sets are float32


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_in_half_precision_factors_stay_beside_and_dense_weights_are_fetched(kind: str) -> None:
    model = tiny_model("sd")
    model.unet.bfloat16()
    for made in (
        recipe(kind),
        recipe(kind, meta={"order": "first_order"}),
        recipe(kind, train={"checkpointing": False}),
    ):
        adapter = new_adapter(model, made)
        with set_up(model, made, adapter) as (ready, own):
            assert isinstance(own, AttachedLora) == (kind == "lora")
            assert bool(fetches(ready.unet)) == (kind == "dense")
        assert not fetches(model.unet) and not model.unet.training
    assert isinstance(new_adapter(model, recipe("lora")), Lora)


def test_a_single_precision_base_is_left_as_it_was() -> None:
    model = tiny_model("sd")
    made = recipe("dense", train={"checkpointing": False})
    with set_up(model, made, new_adapter(model, made)) as (ready, own):
        assert ready is model and not fetches(model.unet) and own.kind == "dense"


def in_precision(
    dtype: torch.dtype, kind: str, vector: dict[str, Tensor] | None, engine: str
) -> list[dict[str, Tensor]]:
    """The gradient at theta and its product with `vector`, on the same rounded base."""
    model = tiny_model("sd")
    model.unet.bfloat16().to(dtype)
    made, data = recipe(kind), tiny_sets(tiny_model("sd"))
    adapter = new_adapter(model, made)
    theta, batch = adapter.parameters(), data.forget.batch(4, 0, 0, "here")
    with set_up(model, made, adapter, checked=False) as (ready, own), sdpa_kernel([SDPBackend.MATH]):

        def loss(params: Mapping[str, Tensor]) -> Tensor:
            return batch_loss(ready, own.materialize(params), batch)

        gradient = dict(zip(theta, torch.autograd.grad(loss(theta), list(theta.values())), strict=True))
        return [gradient, product(engine, loss, theta, vector or gradient)[0]]


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_in_bf16_pairs_lose_no_more_than_double_backward(kind: str) -> None:
    """On so small a net, and v along the gradient, every product in bf16 is coarser than the gradient itself."""
    fine, exact = in_precision(torch.float32, kind, None, "pair_checkpoint")
    errors = {
        engine: relative_error(in_precision(torch.bfloat16, kind, fine, engine)[1], exact)
        for engine in ("pair_checkpoint", "reverse_over_reverse")
    }
    assert errors["pair_checkpoint"] <= 1.2 * errors["reverse_over_reverse"] < 0.1


def test_encoders_wait_on_the_cpu_where_they_are_released() -> None:
    model = tiny_model("sd")
    seen: list[str] = []
    encoder = model.pipeline.text_encoder
    original = encoder.to
    encoder.to = lambda device: seen.append(str(device)) or original(device)  # type: ignore[method-assign]
    for mode in ("release", "keep"):
        made = recipe("dense", train={"memory": {"encoders": mode}})
        with set_up(model, made, new_adapter(model, made)):
            assert encoder.device.type == "cpu"
    assert seen == []  # it was there already


def test_quantised_layers_of_any_make_train_by_pairs() -> None:
    model = tiny_model("sd")
    adapter_of = new_adapter(model, recipe())
    quantised = with_quantized_layers(model, "nf4")
    assert any(is_quantized(layer) for layer in quantised.unet.modules())
    with set_up(quantised, recipe(train={"checkpointing": False}), adapter_of, checked=False) as (ready, own):
        assert isinstance(own, AttachedLora)
        gradient, _ = MetaObjective(ready, own, tiny_sets(model), recipe().meta, 2, 0).gradient(0)  # type: ignore[arg-type]
    assert all(t.isfinite().all() for t in gradient.values())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("order", ["exact", "first_order"])
def test_a_lora_trains_over_a_base_that_bitsandbytes_quantised(kind: str, order: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_model("sd")
    before = {name: p.clone() for name, p in model.unet.named_parameters()}
    made = recipe(base={"quantize": kind}, meta={"order": order, "keep_unconditional": 0.0})
    adapter, data = new_adapter(model, made), tiny_sets(model)
    with set_up(model, made, adapter) as (ready, own):
        assert sum(is_quantized(layer) for layer in ready.unet.modules()) > 10
        found, log = MetaObjective(ready, own, data, made.meta, 2, 0).gradient(0)  # type: ignore[arg-type]
    plain = recipe(meta={"order": order, "keep_unconditional": 0.0})
    with set_up(model, plain, adapter) as (ready, own):
        expected, _ = MetaObjective(ready, own, data, plain.meta, 2, 0).gradient(0)  # type: ignore[arg-type]
    assert relative_error(found, expected) < 0.5 and log["attacked_forget"] > 0
    assert all(torch.equal(p, before[name]) for name, p in model.unet.named_parameters())


def test_the_self_check_covers_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that only LoRA's own layers have: the UNet passes, the twin with the factors does not."""
    from peft.tuners.lora import Linear

    own = Linear.forward

    def faulty(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = own(layer, x, *args, **kwargs)
        return torch.native_layer_norm(y, (y.shape[-1],), None, None, 1e-5)[0]

    monkeypatch.setattr(Linear, "forward", faulty)
    made, model = recipe(), tiny_model("sd")
    with (
        pytest.raises(ModelError, match="at fault: Linear: relative error"),
        set_up(model, made, new_adapter(model, made)),
    ):
        pass


def test_what_cannot_go_together_is_refused() -> None:
    check_memory(recipe(base={"quantize": "nf4"}))
    with pytest.raises(RecipeError, match="whose weights cannot move"):
        check_memory(recipe("dense", base={"quantize": "nf4"}))
    with pytest.raises(RecipeError, match="needs products by pairs"):
        check_memory(recipe(base={"quantize": "nf4"}, meta={"hvp": "reverse_over_reverse"}))
    with pytest.raises(RecipeError, match="adam8bit steps where the states are"):
        recipe(train={"memory": {"optimizer": "adam8bit", "optimizer_on": "cpu"}})


@pytest.mark.parametrize("kind", ["nf4"])
def test_a_whole_arm_over_a_quantised_base_merges_into_the_base_itself(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from adapter_mu.stages import open_run, train_arm

    changes = [*LEAN, f"base.quantize={kind}", "adapter.kind=lora", "adapter.rank=2", "meta.attacker.space=adapter"]
    made = load_recipe("shapes/demo", [*changes, "train.memory.optimizer=adam8bit", "train.memory.states=cpu"])
    run = open_run(made, tmp_path)
    merged = train_arm(run, "arm", made)
    assert not any(is_quantized(layer) for layer in merged.unet.modules())
    moved = [not torch.equal(p, run.model.unet.get_parameter(n)) for n, p in merged.unet.named_parameters()]
    assert any(moved) and all(p.isfinite().all() for p in merged.unet.parameters())
