"""Adapters: what they merge to, how gradients come back, and what their files accept."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import moved_adapter, noise_batch, noise_loss, tiny_unet
from oracles import relative_error
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from adapter_mu.errors import ModelError, RecipeError, UserError
from adapter_mu.params import Adapter, Lora, call_with, load_adapter, make_adapter, pull_back, save_adapter, select
from adapter_mu.params.files import PAYLOAD_HASH, payload_hash

KINDS = [("lora", "full"), ("lora", "cross_attention_kv"), ("dense", "non_cross_attention")]


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize(("kind", "subset"), KINDS)
def test_a_fresh_adapter_changes_nothing(model: str, kind: str, subset: str) -> None:
    unet = tiny_unet(model)
    adapter = make_adapter(unet, kind, subset, rank=2)
    merged = adapter.materialize(adapter.parameters())
    assert merged
    assert all(torch.equal(weight, unet.get_parameter(name)) for name, weight in merged.items())
    assert all(t.is_leaf and t.requires_grad for t in adapter.parameters().values())
    assert adapter.parameters()[min(adapter.parameters())] is adapter.parameters()[min(adapter.parameters())]


def test_lora_covers_the_linear_and_convolution_weights_of_its_subset() -> None:
    unet = tiny_unet("sdxl")
    adapter = make_adapter(unet, "lora", "full", rank=2)
    layers = {n for n, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    assert {n.removesuffix(".weight") for n in adapter.materialize(adapter.parameters())} == layers
    assert set(adapter.parameters()) == {f"{n}.lora_{x}.weight" for n in layers for x in "AB"}


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_lora_equals_peft(model: str) -> None:
    """The same factors, put into a peft-wrapped UNet: same prediction, same merge."""
    unet, wrapped = tiny_unet(model), tiny_unet(model)
    adapter = moved_adapter(unet, "lora", "full")
    layers = [n for n, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    wrapped.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=layers))
    theta, inputs = adapter.parameters(), noise_batch(unet, 1)["inputs"]
    for name, layer in wrapped.named_modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].weight.data = theta[f"{name}.lora_A.weight"].detach()
            layer.lora_B["default"].weight.data = theta[f"{name}.lora_B.weight"].detach()
    merged = adapter.materialize(theta)
    with torch.no_grad():
        ours, theirs = call_with(unet, merged, **inputs).sample, wrapped(**inputs).sample
        base = unet(**inputs).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    assert (ours - base).abs().max() > 0.05
    for name, layer in wrapped.named_modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
            torch.testing.assert_close(merged[f"{name}.weight"], layer.get_base_layer().weight, rtol=1e-13, atol=1e-14)


def test_lora_draws_depend_on_the_seed_alone() -> None:
    unet, state = tiny_unet("sd"), torch.random.get_rng_state()
    first, again, other = (Lora(unet, "cross_attention", 2, seed=seed).parameters() for seed in (1, 1, 2))
    assert relative_error(first, again) == 0
    assert relative_error(first, other) > 0.1
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("kind", "subset"), KINDS)
def test_theta_is_single_precision_over_a_half_precision_base(kind: str, subset: str) -> None:
    unet = tiny_unet("sd").to(torch.bfloat16)
    adapter = make_adapter(unet, kind, subset, rank=2)
    merged = adapter.materialize(adapter.parameters())
    assert {t.dtype for t in (*adapter.parameters().values(), *merged.values())} == {torch.float32}
    inputs = {n: v.bfloat16() if v.is_floating_point() else v for n, v in noise_batch(unet, 1)["inputs"].items()}
    loss = call_with(unet, merged, **inputs).sample.float().square().mean()
    gradient = torch.autograd.grad(loss, list(adapter.parameters().values()))
    assert sum(float(g.abs().sum()) for g in gradient) > 0


@pytest.mark.parametrize(("kind", "subset"), KINDS)
def test_pull_back_equals_autograd_through_the_merge(kind: str, subset: str) -> None:
    unet = tiny_unet("sd")
    adapter = moved_adapter(unet, kind, subset)
    theta, batch = adapter.parameters(), noise_batch(unet, 1)
    expected = torch.autograd.grad(noise_loss(unet, adapter.materialize(theta), batch), list(theta.values()))
    weights = {n: p.detach() for n, p in unet.named_parameters()} | adapter.materialize(theta)
    weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
    dense = torch.autograd.grad(noise_loss(unet, weights, batch), list(weights.values()))
    found = pull_back(adapter, theta, dict(zip(weights, dense, strict=True)))
    assert relative_error(found, dict(zip(theta, expected, strict=True))) < 1e-13


def test_pull_back_of_some_weights_is_zero_for_the_others() -> None:
    adapter = moved_adapter(tiny_unet("sd"), "lora", "cross_attention_kv")
    name, weight = next(iter(adapter.materialize(adapter.parameters()).items()))
    found = pull_back(adapter, adapter.parameters(), {name: torch.ones_like(weight)})
    touched = {n for n, gradient in found.items() if gradient.abs().sum() > 0}
    assert touched == {name.replace("weight", f"lora_{x}.weight") for x in "AB"}
    with pytest.raises(UserError, match="none of the gradients"):
        pull_back(adapter, adapter.parameters(), {"conv_in.weight": torch.zeros(1)})


@pytest.mark.parametrize(("kind", "subset"), KINDS)
def test_a_saved_adapter_comes_back(kind: str, subset: str, tmp_path: Path) -> None:
    unet, path = tiny_unet("sd"), tmp_path / "new" / "adapter.safetensors"
    adapter = moved_adapter(unet, kind, subset)
    save_adapter(adapter, path, {"base": "tiny", "kind": "overruled"})
    loaded = load_adapter(unet, path)
    assert loaded.metadata() == adapter.metadata()
    assert relative_error(loaded.parameters(), adapter.parameters()) < 1e-15
    with safe_open(path, "pt") as stored:
        sealed = {"adapter_mu_format": "1", PAYLOAD_HASH: payload_hash(path)}
        assert stored.metadata() == {**adapter.metadata(), "base": "tiny", **sealed}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_adapter_makes_the_same_bytes(tmp_path: Path) -> None:
    adapter = moved_adapter(tiny_unet("sd"), "lora", "cross_attention_kv")
    extra = {f"key {k}": f'"quoted" \\ line\nbreak \x01 é 漢 {k}' for k in range(8)}
    contents = set()
    for attempt in range(4):
        save_adapter(adapter, tmp_path / f"{attempt}.safetensors", extra)
        contents.add((tmp_path / f"{attempt}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as stored:
        sealed = {"adapter_mu_format": "1", PAYLOAD_HASH: payload_hash(tmp_path / "0.safetensors")}
        assert stored.metadata() == {**adapter.metadata(), **extra, **sealed}


def test_the_file_of_a_dense_adapter_holds_the_difference_to_the_base(tmp_path: Path) -> None:
    unet = tiny_unet("sd")
    adapter = moved_adapter(unet, "dense", "cross_attention_kv")
    save_adapter(adapter, tmp_path / "a.safetensors", {})
    stored = load_file(tmp_path / "a.safetensors")
    for name, base in select(unet, "cross_attention_kv").items():
        torch.testing.assert_close(stored[name], adapter.parameters()[name].detach() - base)


def saved(tmp_path: Path, **changes: Any) -> tuple[Path, Adapter]:
    """A good LoRA file with some tensors or metadata replaced."""
    adapter = moved_adapter(tiny_unet("sd"), "lora", "cross_attention_kv")
    path = tmp_path / "adapter.safetensors"
    tensors = {**adapter.state_dict(), **changes.pop("tensors", {})}
    metadata = {**adapter.metadata(), "adapter_mu_format": "1", **changes}
    kept = {n: t for n, t in tensors.items() if t is not None}
    save_file(kept, path, {n: v for n, v in metadata.items() if v is not None})
    return path, adapter


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"adapter_mu_format": None}, "no adapter_mu file of format 1 .found none"),
        ({"adapter_mu_format": "9"}, "found 9"),
        ({"kind": "hypernetwork"}, "adapter kind is 'hypernetwork'"),
        ({"subset": "nothing at all"}, "'nothing at all' selects no parameter"),
        ({"rank": "1000000000"}, "do not have rank 1000000000"),
        ({"rank": "two"}, "metadata is damaged"),
        ({"alpha": None}, "metadata is damaged"),
        ({"subset": "cross_attention"}, "lacks the tensor"),
        ({"subset": "down_blocks.*attn2.to_[kv]"}, "has an unknown tensor"),
    ],
)
def test_refuses_files_with_wrong_metadata(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, _ = saved(tmp_path, **metadata)
    with pytest.raises(ModelError, match=message):
        load_adapter(tiny_unet("sd"), path)


def test_refuses_another_architecture_and_wrong_shapes(tmp_path: Path) -> None:
    path, adapter = saved(tmp_path)
    with pytest.raises(ModelError, match="made for another model"):
        load_adapter(tiny_unet("sdxl"), path)
    name = max(adapter.parameters())
    path, _ = saved(tmp_path, tensors={name: torch.zeros(5, 5)})
    with pytest.raises(ModelError, match=r"of shape \(5, 5\) where this model needs"):
        load_adapter(tiny_unet("sd"), path)


def test_refuses_pickles_under_any_name_and_broken_files(tmp_path: Path) -> None:
    unet, path = tiny_unet("sd"), tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="there is no adapter file"):
        load_adapter(unet, path)
    path.write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(ModelError, match="is a pickle"):
        load_adapter(unet, path)
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="is a pickle"):
        load_adapter(unet, path)
    whole = saved(tmp_path)[0].read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="truncated"):
            load_adapter(unet, path)
    suspicious = tmp_path / "adapter.ckpt"
    suspicious.write_bytes(whole)
    with pytest.raises(ModelError, match="convert it to safetensors"):
        load_adapter(unet, suspicious)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, adapter = saved(tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(adapter, path, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_refuses_recipes_that_make_no_adapter() -> None:
    unet = tiny_unet("sd")
    for kind, subset, rank, alpha, message in [
        ("hyper", "full", 1, None, "choose lora or dense"),
        ("lora", "full", 0, None, "both must be positive"),
        ("lora", "full", 2, float("nan"), "both must be positive"),
        ("lora", "bias$", 2, None, "no Linear or Conv2d weight"),
        ("lora", "typo", 2, None, "selects no parameter"),
    ]:
        with pytest.raises(RecipeError, match=message):
            make_adapter(unet, kind, subset, rank=rank, alpha=alpha)
    with pytest.raises(ModelError, match="grouped convolution"):
        make_adapter(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "lora", "full")


def test_call_with_refuses_strangers() -> None:
    net = nn.Linear(2, 3)
    for params, message in [
        ({"wieght": torch.zeros(3, 2)}, "no parameter 'wieght'"),
        ({"weight": torch.zeros(2, 3)}, r"has shape \(3, 2\) but \(2, 3\)"),
    ]:
        with pytest.raises(UserError, match=message):
            call_with(net, params, torch.ones(1, 2))


def test_call_with_replaces_and_differentiates_and_leaves_the_module_alone() -> None:
    net, x = nn.Linear(2, 3), torch.ones(1, 2)
    before, weight = net.weight.clone(), torch.zeros(3, 2, requires_grad=True)
    result = call_with(net, {"weight": weight}, x)
    assert torch.equal(result, net.bias[None])
    result.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 2))
    assert torch.equal(net.weight, before)
