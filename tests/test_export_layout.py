"""The original single-file layout: at the real sizes against the published key lists, on shapes with real tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils as stock
from original_names import Shapes, published, unet
from real_sizes import real_models
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny_sd
from torch import nn

from adapter_mu.errors import ModelError
from adapter_mu.export.checkpoint import open_checkpoint
from adapter_mu.export.merging import merge_to
from adapter_mu.export.single_file import canonical, original_layout
from adapter_mu.export.streaming import StoredFile

PIPELINES = {"shapes-sd": StableDiffusionPipeline, "shapes-sdxl": StableDiffusionXLPipeline}
# Of the contrastive loss, not of the encoder: transformers does not keep it, so a diffusers folder cannot give it.
NOT_IN_FOLDERS = {"conditioner.embedders.1.model.logit_scale"}
POSITION_IDS = "embeddings.position_ids"


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def real(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, real_models(request.param)


def written(kind: str, models: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {}
    for component, model in models.items():
        tensors = {canonical(component, name): tensor for name, tensor in model.state_dict().items()}
        if component == "text_encoder":
            tensors[POSITION_IDS] = torch.empty(1, 77, device="meta")
        for entry in original_layout(kind, component, tensors):
            parts = [tensors[name] for name in entry.parts]
            found[entry.key] = entry.join(parts)
            assert tuple(found[entry.key].shape) == entry.shape([tuple(part.shape) for part in parts])
    return found


def test_the_published_lists_have_the_published_lengths() -> None:
    assert (len(published("sd")), len(published("sdxl"))) == (686 + 248 + 197, 1680 + 248 + 197 + 390)


def test_every_real_key_and_shape_is_written(real: tuple[str, dict[str, Any]]) -> None:
    kind, models = real
    expected: Shapes = {key: shape for key, shape in published(kind).items() if key not in NOT_IN_FOLDERS}
    assert {key: tuple(tensor.shape) for key, tensor in written(kind, models).items()} == expected


def test_diffusers_finds_every_real_tensor_again(real: tuple[str, dict[str, Any]]) -> None:
    """Through diffusers' own conversion, on the meta device."""
    kind, models = real
    file = written(kind, models)
    found = {
        "unet": stock.convert_ldm_unet_checkpoint(dict(file), models["unet"].config),
        "vae": stock.convert_ldm_vae_checkpoint(dict(file), models["vae"].config),
        "text_encoder": stock.convert_ldm_clip_checkpoint(dict(file)),
    }
    if kind == "sdxl":
        second = models["text_encoder_2"]
        found["text_encoder_2"] = stock.convert_open_clip_checkpoint(
            second, dict(file), prefix="conditioner.embedders.1.model."
        )
    for component, model in models.items():
        names = {canonical(component, name): tuple(t.shape) for name, t in found[component].items()}
        names.pop(POSITION_IDS, None)
        expected = {canonical(component, name): tuple(t.shape) for name, t in model.state_dict().items()}
        assert names == expected, component


def test_an_unknown_tensor_has_no_place() -> None:
    with pytest.raises(ModelError, match="no place for the UNet's 'mystery.weight'"):
        original_layout("sd", "unet", ["mystery.weight"])
    assert "time_embed.0.weight" in unet({"context": 8, "attention": (), "mult": (1,), "depth": (0,)})


@pytest.mark.parametrize("name", PIPELINES)
def test_single_files_reopen_with_every_tensor_equal(name: str, tmp_path: Path) -> None:
    base = open_checkpoint(name)
    out = tmp_path / "one.safetensors"
    merge_to(out, base, [], form="single-file", verify=False)
    opened = PIPELINES[name].from_single_file(
        str(out), config=str(base.folder), local_files_only=True, torch_dtype=torch.float16
    )
    folder = PIPELINES[name].from_pretrained(base.folder, torch_dtype=torch.float16)
    parts = {key: part for key, part in folder.components.items() if isinstance(part, nn.Module)}
    assert set(parts) >= {"unet", "vae", "text_encoder"} | ({"text_encoder_2"} if name == "shapes-sdxl" else set())
    for key, part in parts.items():
        expected, found = part.state_dict(), getattr(opened, key).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[tensor], value) for tensor, value in expected.items()), key


@pytest.mark.parametrize("name", PIPELINES)
def test_single_files_become_folders_and_files_again(name: str, tmp_path: Path) -> None:
    """Both ways round; what a file holds besides is kept in a file, copies of EMA weights never."""
    base = open_checkpoint(name)
    one, again, folder = tmp_path / "one.safetensors", tmp_path / "again.safetensors", tmp_path / "folder"
    merge_to(one, base, [], form="single-file", verify=False)
    tensors = StoredFile(one).tensors()
    extra = {"model_ema.diffusion_modelout2weight": torch.zeros(3), "betas": torch.ones(5)}
    save_file({key: lazy.make() for key, lazy in tensors.items()} | extra, tmp_path / "more.safetensors")
    single = open_checkpoint(str(tmp_path / "more.safetensors"), config=str(base.folder))
    merge_to(again, single, [], form="single-file", verify=False)
    merge_to(folder, single, [], verify=False)
    found = StoredFile(again).tensors()
    assert found.keys() == tensors.keys() | {"betas"}
    assert all(torch.equal(found[key].make(), lazy.make()) for key, lazy in tensors.items())
    for component, expected in base.components.items():
        back = open_checkpoint(str(folder)).components[component]
        assert back.keys() == expected.keys()
        assert all(torch.equal(back[key].make(), lazy.make()) for key, lazy in expected.items()), component


def test_folders_of_the_time_of_sd_1_5(tmp_path: Path) -> None:
    """Its VAE calls attention `query` and `proj_attn`, its text encoder stores position ids behind `text_model.`."""
    pipeline = tiny_sd()
    pipeline.save_pretrained(tmp_path / "old")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae, text = (next((tmp_path / "old" / part).glob("*.safetensors")) for part in ("vae", "text_encoder"))
    tensors = load_file(vae)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, vae, {"format": "pt"})
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(text).items()}
    save_file(tensors | {f"text_model.{POSITION_IDS}": torch.arange(12)[None]}, text, {"format": "pt"})
    base = open_checkpoint(str(tmp_path / "old"))
    for out, form in ((tmp_path / "one.safetensors", "single-file"), (tmp_path / "new", "diffusers")):
        merge_to(out, base, [], form=form, verify=False)  # type: ignore[arg-type]
    opened = [
        StableDiffusionPipeline.from_pretrained(tmp_path / "new"),
        StableDiffusionPipeline.from_single_file(
            str(tmp_path / "one.safetensors"), config=str(tmp_path / "new"), local_files_only=True
        ),
    ]
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(pipeline, part).state_dict()
        for found in (getattr(other, part).state_dict() for other in opened):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items()), part
