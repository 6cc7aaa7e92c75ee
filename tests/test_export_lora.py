"""Adapter files for other tools: names, shapes and alphas by kohya's and ComfyUI's rules, pictures by diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import PIPELINES, adapter_of, drawn_factors, noise, parts, pictures, relative, saved
from original_names import SD15, SDXL
from original_names import unet as original_unet
from real_sizes import real_models
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adapter_mu.cli.main import main
from adapter_mu.errors import UserError
from adapter_mu.export.adapters import write_adapter
from adapter_mu.export.checkpoint import open_checkpoint
from adapter_mu.export.edits import Edits, read_edits
from adapter_mu.export.kohya import kohya_names
from adapter_mu.export.layers import Factors
from adapter_mu.export.merging import merge_to
from adapter_mu.models import LoadedModel, load_model

RANK, ALPHA = 2, 5.0
# kohya's text encoders: the linear layers of CLIPAttention and CLIPMLP. ComfyUI's LORA_CLIP_MAP lists the same six.
TEXT = re.compile(
    r"(lora_te|lora_te1|lora_te2)_text_model_encoder_layers_\d+_"
    r"(mlp_fc1|mlp_fc2|self_attn_k_proj|self_attn_q_proj|self_attn_v_proj|self_attn_out_proj)"
)


@pytest.fixture(scope="module", params=list(PIPELINES))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


def everywhere(pipeline: Any, name: str) -> Edits:
    """A LoRA on every Linear and Conv2d of the UNet and on all layers of the text encoders, alpha unlike the rank."""
    generator = torch.Generator().manual_seed(4)
    components: dict[str, Any] = {}
    for component, part in parts(pipeline).items():
        for path, layer in part.named_modules():
            path = path.removeprefix("text_model.")
            if isinstance(layer, nn.Linear | nn.Conv2d) and component != "vae" and "text_projection" not in path:
                down, up = drawn_factors(layer.weight, RANK, generator)
                components.setdefault(component, {})[f"{path}.weight"] = Factors(down, up, ALPHA / RANK)
    return Edits(name, "lora", components, {"concept": "ring"})


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_diffusers_loads_unet_and_text_encoders_and_draws_the_same(
    model: LoadedModel, form: Any, tmp_path: Path
) -> None:
    base, edits = open_checkpoint(model.name), everywhere(model.pipeline, "both")
    merge_to(tmp_path / "merged", base, [(edits, 1.0)], dtype=torch.float32)
    write_adapter(tmp_path / "lora.safetensors", edits, base, form, torch.float32)
    merged = PIPELINES[model.name].from_pretrained(tmp_path / "merged")
    attached = PIPELINES[model.name].from_pretrained(model.source, torch_dtype=torch.float32)
    plain = pictures(attached)
    attached.load_lora_weights(str(tmp_path / "lora.safetensors"))
    for component, layers in edits.components.items():
        found = [name for name, _ in getattr(attached, component).named_modules() if name.endswith("lora_A")]
        assert len(found) == len(layers), component
    expected = pictures(merged)
    assert (plain - expected).abs().mean() > 5
    assert (pictures(attached) - expected).abs().max() < 0.5
    assert relative(noise(attached, model), noise(merged, model)) < 1e-5
    back = read_edits(tmp_path / "lora.safetensors", base)
    for component, layers in edits.components.items():
        for name, edit in layers.items():
            torch.testing.assert_close(back.components[component][name].delta(), edit.delta())


def comfy_names(kind: str, model: Any) -> dict[str, str]:
    """ComfyUI's model_lora_keys_unet: what a LoRA may call a weight of the original UNet, and which weight that is.

    Written from its rules, over the key list of `original_names`; not from the code under test.
    """
    return {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): key
        for key in original_unet(SDXL if kind == "sdxl" else SD15)
        if key.endswith(".weight")
    }


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_real_architectures_are_named_as_the_rules_say(kind: str) -> None:
    models = real_models(kind)
    for component in ("unet", "text_encoder", "text_encoder_2")[: 2 + (kind == "sdxl")]:
        parameters = [name.removeprefix("text_model.") for name, _ in models[component].named_parameters()]
        names = kohya_names(kind, component, parameters)  # type: ignore[arg-type]
        layers = {
            name.removeprefix("text_model.")
            for name, layer in models[component].named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and name != "text_projection"
        }
        found = {names[layer] for layer in layers}
        assert len(found) == len(layers), "two layers with one name"
        if component != "unet":
            prefix = {"sd": "lora_te_", "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}}[kind]
            prefix = prefix if isinstance(prefix, str) else prefix[component]
            assert all(TEXT.fullmatch(name) and name.startswith(prefix) for name in found)
        elif kind == "sdxl":
            places = comfy_names(kind, models)
            shapes = original_unet(SDXL)
            for layer in layers:
                weight = models[component].get_parameter(f"{layer}.weight")
                assert shapes[places[names[layer]]] == tuple(weight.shape), layer
        else:
            assert found == {"lora_unet_" + layer.replace(".", "_") for layer in layers}


def test_known_names_of_published_files() -> None:
    """Names as they stand in LoRAs that people share."""
    sdxl = kohya_names("sdxl", "unet", [n for n, _ in real_models("sdxl")["unet"].named_parameters()])
    assert sdxl["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"] == (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"
    )
    assert sdxl["mid_block.attentions.0.proj_in"] == "lora_unet_middle_block_1_proj_in"
    assert sdxl["up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj"] == (
        "lora_unet_output_blocks_2_1_transformer_blocks_9_ff_net_0_proj"
    )
    assert sdxl["down_blocks.0.downsamplers.0.conv"] == "lora_unet_input_blocks_3_0_op"
    assert sdxl["up_blocks.0.upsamplers.0.conv"] == "lora_unet_output_blocks_2_2_conv"
    sd = kohya_names("sd", "unet", [n for n, _ in real_models("sd")["unet"].named_parameters()])
    assert sd["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"] == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    )


def test_keys_shapes_alpha_and_metadata_of_a_kohya_file(model: LoadedModel, tmp_path: Path) -> None:
    adapter = saved(adapter_of(model, "lora", rank=3, alpha=7.5), model, tmp_path)
    out = tmp_path / "kohya.safetensors"
    assert main(["export", str(adapter), "--base", model.name, "--out", str(out)]) == 0
    tensors = load_file(out)
    layers = {key.partition(".")[0] for key in tensors}
    assert tensors.keys() == {f"{n}.{k}" for n in layers for k in ("lora_down.weight", "lora_up.weight", "alpha")}
    for layer in layers:
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        alpha = tensors[f"{layer}.alpha"]
        assert (down.shape[0], up.shape[1], alpha.shape, float(alpha)) == (3, 3, (), 7.5)
        assert down.dim() == up.dim() and up.shape[2:] == torch.Size([1] * (up.dim() - 2))
    original = any("input_blocks" in layer for layer in layers)
    assert original == (model.kind == "sdxl") and not any("." in layer for layer in layers)
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert (said["ss_network_module"], said["ss_network_dim"], said["ss_network_alpha"]) == (
        "networks.lora",
        "3",
        "7.5",
    )
    assert said["ss_base_model_version"] == ("sdxl_base_v1-0" if model.kind == "sdxl" else "sd_v1")
    assert said["modelspec.architecture"].endswith("/lora") and len(said["sshs_model_hash"]) == 64


def test_dense_deltas_are_diffs_for_comfyui(model: LoadedModel, tmp_path: Path) -> None:
    """Read by ComfyUI's rule: `<name>.diff` is added to the weight that the name means, `.diff_b` to its bias."""
    adapter = adapter_of(model, "dense")
    path, out = saved(adapter, model, tmp_path), tmp_path / "dense.safetensors"
    assert main(["export", str(path), "--base", model.name, "--out", str(out)]) == 0
    names = kohya_names(model.kind, "unet", [name for name, _ in model.unet.named_parameters()])
    weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.unet.named_parameters()}
    tensors = load_file(out)
    for layer, name in names.items():
        for suffix, leaf in (("diff", "weight"), ("diff_b", "bias")):
            if f"{name}.{suffix}" in tensors:
                weights[f"{layer}.{leaf}"] += tensors.pop(f"{name}.{suffix}")
    assert not tensors
    merged = adapter.materialize(adapter.parameters())
    assert all(torch.allclose(weights[name], weight, atol=1e-6) for name, weight in merged.items())
    assert read_edits(out, open_checkpoint(model.name)).kind == "dense"
    with pytest.raises(UserError, match="a dense delta is no LoRA"):
        base = open_checkpoint(model.name)
        write_adapter(tmp_path / "no.safetensors", read_edits(path, base), base, "peft", torch.float32)


def test_the_warning_comes_once_and_only_for_what_is_not_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model("shapes-sd")
    adapter = saved(adapter_of(model, "lora"), model, tmp_path)
    assert main(["export", str(adapter), "--base", "shapes-sd", "--out", str(tmp_path / "a.safetensors")]) == 0
    assert capsys.readouterr().err.count("is an adapter that is not merged") == 1
    assert "This is an adapter, not a defence" in (tmp_path / "a.md").read_text()
    assert main(["merge", str(adapter), "--base", "shapes-sd", "--out", str(tmp_path / "merged")]) == 0
    assert "not merged" not in capsys.readouterr().err
