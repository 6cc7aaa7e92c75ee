"""Loading: what is accepted is read exactly, what is not is refused in one clear sentence, and nothing asks the hub."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from ldm_layout import ldm_tensors, save_single_file
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny_sd, tiny_sdxl
from torch import nn

from adapter_mu.errors import ModelError
from adapter_mu.models import BUILT_IN, load_model

BUILDERS = {"sd": tiny_sd, "sdxl": tiny_sdxl}
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local load asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind, build in BUILDERS.items():
        folders[kind] = tmp_path_factory.mktemp("saved") / f"tiny-{kind}.v1"
        build().save_pretrained(folders[kind])
    return folders


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the SD folder that a test may spoil."""
    return Path(shutil.copytree(saved["sd"], tmp_path / "spoiled"))


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_every_form_gives_the_same_frozen_weights(kind: str, form: str, saved: dict[str, Path], tmp_path: Path) -> None:
    pipeline = BUILDERS[kind]()
    save_single_file(pipeline, tmp_path / "one.safetensors")
    config = None if form == "folder" else str(saved[kind])
    model = load_model(str(saved[kind] if form == "folder" else tmp_path / "one.safetensors"), config=config)
    found, expected = weights(model.pipeline), weights(pipeline)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    modules = [part for part in model.pipeline.components.values() if isinstance(part, nn.Module)]
    assert not any(part.training or any(p.requires_grad for p in part.parameters()) for part in modules)
    assert model.name == ("one" if form == "file" else f"tiny-{kind}.v1")
    assert (model.kind, model.latent_size, model.num_train_timesteps) == (kind, 8, 1000)
    assert (model.prediction_type, model.dtype, model.device.type) == ("epsilon", torch.float32, "cpu")
    assert model.alphas_cumprod.shape == (1000,)


def test_dtype_and_variant(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    assert load_model(str(folder), variant="fp16", dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ModelError, match="cannot read"):
        load_model(str(folder))


def test_safety_checker_is_not_loaded(folder: Path) -> None:
    """As in the SD 1.x folders on the hub, whose index names one."""
    checker, extractor = ["stable_diffusion", "StableDiffusionSafetyChecker"], ["transformers", "CLIPImageProcessor"]
    edit_json(
        folder / "model_index.json", safety_checker=checker, feature_extractor=extractor, requires_safety_checker=True
    )
    assert load_model(str(folder)).pipeline.safety_checker is None


def test_v_prediction_and_schedulers(folder: Path) -> None:
    EulerDiscreteScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    assert load_model(str(folder)).prediction_type == "v_prediction"
    EulerDiscreteScheduler(prediction_type="sample").save_pretrained(folder / "scheduler")
    with pytest.raises(ModelError, match="predicts 'sample'"):
        load_model(str(folder))
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(ModelError, match="no alphas_cumprod"):
        load_model(str(folder))


@pytest.mark.parametrize("suffix", ["ckpt", "bin", "pt", "pth"])
def test_pickled_file_is_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"is a pickle.*convert it to \.safetensors"):
        load_model(str(path))


def test_folder_with_pickled_unet_is_refused(folder: Path) -> None:
    (folder / UNET_WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.bin' is a pickle.*save_pretrained"):
        load_model(str(folder))
    (folder / "unet/diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load_model(str(folder))


def test_other_pipelines_are_refused_before_weights_are_read(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelError, match="holds a FluxPipeline.*StableDiffusionXLPipeline"):
        load_model(str(folder))
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline", unet=["my_code", "MyUNet"])
    with pytest.raises(ModelError, match="MyUNet"):
        load_model(str(folder))
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="not a diffusers pipeline description"):
        load_model(str(folder))
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_model(str(folder))


def test_inpainting_is_refused(folder: Path) -> None:
    edit_json(folder / "unet/config.json", in_channels=9)
    tensors = load_file(folder / UNET_WEIGHTS)
    tensors["conv_in.weight"] = torch.zeros(8, 9, 3, 3)
    save_file(tensors, folder / UNET_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="takes 9 channels"):
        load_model(str(folder))


@pytest.mark.parametrize("source", ["nowhere", "./no/such/folder", "a/b/c", "owner/model.safetensors"])
def test_missing_source_lists_what_was_tried(source: str) -> None:
    with pytest.raises(ModelError, match="shapes-sd, shapes-sdxl.*no file or folder at.*'owner/name'"):
        load_model(source)


@pytest.mark.parametrize("keep", [0.9, 0.01, 0.0])
def test_truncated_weights(folder: Path, tmp_path: Path, keep: float) -> None:
    save_single_file(tiny_sd(), tmp_path / "one.safetensors")
    for path, source in ((folder / UNET_WEIGHTS, folder), (tmp_path / "one.safetensors",) * 2):
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(ModelError, match="not a complete safetensors file.*truncated"):
            load_model(str(source), config=str(folder))


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("unet/diffusion_pytorch_model", "conv_out", "lacks 2 tensors of its unet"),
        ("vae/diffusion_pytorch_model", "decoder.conv_out", "lacks 2 tensors of its vae"),
        ("text_encoder/model", "final_layer_norm", "lacks 2 tensors of its text_encoder"),
    ],
)
def test_folder_with_lacking_tensors(folder: Path, part: str, name: str, message: str) -> None:
    path = folder / f"{part}.safetensors"
    kept = {key: value for key, value in load_file(path).items() if name not in key}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [("output_blocks.3", "some of its tensors are missing"), ("final_layer", "lacks 2 tensors of its text_encoder")],
)
def test_file_with_lacking_tensors(saved: dict[str, Path], tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "one.safetensors"
    save_file({key: value for key, value in ldm_tensors(tiny_sd()).items() if name not in key}, path)
    with pytest.raises(ModelError, match=message):
        load_model(str(path), config=str(saved["sd"]))


def test_misshapen_tensors(folder: Path) -> None:
    edit_json(folder / "unet/config.json", cross_attention_dim=20)
    with pytest.raises(ModelError, match="cannot read"):
        load_model(str(folder))


def test_single_file_needs_an_architecture(saved: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_single_file(tiny_sd(), path)
    with pytest.raises(ModelError, match=r"pass `config`.*stable-diffusion-v1-5"):
        load_model(str(path))
    with pytest.raises(ModelError, match="describes another architecture"):
        load_model(str(path), config=str(saved["sdxl"]))
    with pytest.raises(ModelError, match="is not a folder"):
        load_model(str(path), config=str(tmp_path / "none"))


def test_single_file_uses_a_cached_architecture(saved: dict[str, Path], tmp_path: Path) -> None:
    save_single_file(tiny_sd(), tmp_path / "one.safetensors")
    fill_cache(tmp_path / "cache", "stable-diffusion-v1-5/stable-diffusion-v1-5", saved["sd"])
    assert load_model(str(tmp_path / "one.safetensors")).kind == "sd"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet.lora_down.weight", r"an adapter \(LoRA\)"),
        ("something.weight", "no SD 1.x or SDXL checkpoint"),
        ("model.diffusion_model.input_blocks.0.0.weight", "no text encoder"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, name: str, message: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path / "x.safetensors"))


def fill_cache(cache: Path, repo: str, folder: Path, commit: str = "a" * 40) -> None:
    """The layout of the Hugging Face cache after one download."""
    entry = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, entry / "snapshots" / commit)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)


def test_hub_id_from_the_cache(saved: dict[str, Path], tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", "owner/tiny", saved["sdxl"])
    for revision in (None, "a" * 40):
        model = load_model("owner/tiny", revision=revision, local_files_only=True)
        assert (model.kind, model.name) == ("sdxl", "tiny")
        assert "a" * 40 in model.source
    with pytest.raises(ModelError, match=r"revision bbbb.*no file or folder.*cache"):
        load_model("owner/tiny", revision="b" * 40, local_files_only=True)
    with pytest.raises(ModelError, match="cannot load 'owner/other'"):
        load_model("owner/other", local_files_only=True)


def test_built_in_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("adapter_mu.models.load.resources.files", lambda _: tmp_path)
    for name in BUILT_IN:
        with pytest.raises(ModelError, match="not in this installation"):
            load_model(name)


def test_importing_models_does_not_import_diffusers() -> None:
    code = "import sys, adapter_mu.models; sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
