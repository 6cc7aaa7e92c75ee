"""A merged model is base + live adapter, whatever the kind, the base's form and the output's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import KINDS, PIPELINES, adapter_of, noise, pictures, relative, saved
from safetensors import safe_open

from adapter_mu.errors import ModelError, UserError
from adapter_mu.export.adapters import write_adapter
from adapter_mu.export.checkpoint import open_checkpoint
from adapter_mu.export.edits import read_edits
from adapter_mu.export.merging import merge_to
from adapter_mu.export.streaming import StoredFile
from adapter_mu.export.verify import verify_file
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.params import Adapter, load_adapter
from adapter_mu.params.files import PAYLOAD_HASH
from adapter_mu.ship import merge_adapters


@pytest.fixture(scope="module", params=list(PIPELINES))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


def live(model: LoadedModel, kind: str, adapter: Path, folder: Path) -> Any:
    """Stock diffusers with the adapter attached: peft's own layers for factors, added weights for a dense delta."""
    pipeline = PIPELINES[model.name].from_pretrained(model.source, torch_dtype=torch.float32)
    base = open_checkpoint(model.name)
    if kind == "dense":
        with torch.no_grad():
            for name, delta in StoredFile(adapter).tensors().items():
                pipeline.unet.get_parameter(name).add_(delta.make())
    else:
        lora = folder / "live.safetensors"
        write_adapter(lora, read_edits(adapter, base), base, "peft", torch.float32)
        pipeline.load_lora_weights(str(lora))
    return pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_pictures_are_those_of_base_and_live_adapter(model: LoadedModel, kind: str, tmp_path: Path) -> None:
    adapter = saved(adapter_of(model, kind), model, tmp_path)
    out, one = tmp_path / "out", tmp_path / "one.safetensors"
    merged = merge_adapters([adapter], model.name, out, dtype="fp32")
    assert merged.verdict and merged.verdict.error < 1e-5 < 5e-3 < merged.verdict.effect
    merge_adapters([adapter], model.name, one, dtype="fp32", form="single-file", verify=False)
    attached = live(model, kind, adapter, tmp_path)
    noise_live, pictures_live = noise(attached, model), pictures(attached)
    assert relative(noise_live, noise(model.pipeline, model)) > 5e-3, "the adapter must change something"
    folder = PIPELINES[model.name].from_pretrained(out)
    file = PIPELINES[model.name].from_single_file(str(one), config=model.source, local_files_only=True)
    for opened in (folder, file):
        assert relative(noise(opened, model), noise_live) < 1e-5
        found = pictures(opened)
        assert (found - pictures_live).abs().max() < 0.5  # the same 8-bit values, but where one lies at a half
        assert (found.round() != pictures_live.round()).float().mean() < 1e-3


def test_several_adapters_add_up_with_their_weights(model: LoadedModel, tmp_path: Path) -> None:
    base = open_checkpoint(model.name)
    pipeline = PIPELINES[model.name].from_pretrained(model.source, torch_dtype=torch.float32)
    files = []
    for name, kind in (("first", "lora"), ("second", "low_rank")):
        (tmp_path / name).mkdir()
        files.append(saved(adapter_of(model, kind, seed=len(name)), model, tmp_path / name))
        write_adapter(tmp_path / f"{name}.safetensors", read_edits(files[-1], base), base, "peft", torch.float32)
        pipeline.load_lora_weights(str(tmp_path / f"{name}.safetensors"), adapter_name=name)
    pipeline.set_adapters(["first", "second"], adapter_weights=[0.7, -1.5])
    merged = merge_adapters(files, model.name, tmp_path / "out", dtype="fp32", scales=[0.7, -1.5])
    opened = PIPELINES[model.name].from_pretrained(tmp_path / "out")
    assert relative(noise(opened, model), noise(pipeline, model)) < 1e-5
    assert merged.verdict and merged.verdict.error < 1e-5
    with pytest.raises(UserError, match="2 adapters need 2 scales, not 1"):
        merge_adapters(files, model.name, tmp_path / "again", scales=[1.0])


def test_rslora_is_scaled_by_the_root_of_its_rank(model: LoadedModel, tmp_path: Path) -> None:
    """A LoRA that diffusers itself saved, with peft's use_rslora."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = PIPELINES[model.name].from_pretrained(model.source, torch_dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=2, use_rslora=True, target_modules=["to_q", "to_k", "conv1"])
    torch.manual_seed(0)
    pipeline.unet.add_adapter(config)
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn_like(parameter)
    pipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(pipeline.unet), unet_lora_adapter_metadata=config.to_dict()
    )
    lora = tmp_path / "pytorch_lora_weights.safetensors"
    merge_adapters([lora], model.name, tmp_path / "out", dtype="fp32")
    opened = PIPELINES[model.name].from_pretrained(tmp_path / "out")
    assert relative(noise(opened, model), noise(pipeline, model)) < 1e-5


@pytest.mark.parametrize("form", ["fp16 variant", "sharded", "single file"])
def test_every_form_of_base_gives_the_same_weights(model: LoadedModel, form: str, tmp_path: Path) -> None:
    adapter = saved(adapter_of(model, "lora"), model, tmp_path)
    merge_adapters([adapter], model.name, tmp_path / "expected", dtype="fp32", verify=False)
    source, options = tmp_path / "base", {}
    pipeline = PIPELINES[model.name].from_pretrained(model.source, torch_dtype=torch.float16)
    if form == "single file":
        source, options = tmp_path / "base.safetensors", {"config": model.source}
        merge_to(source, open_checkpoint(model.name), [], form="single-file", verify=False)
    elif form == "sharded":
        pipeline.save_pretrained(source, max_shard_size="1MB")
        assert len(list((source / "unet").glob("*-of-*.safetensors"))) > 2
    else:
        pipeline.save_pretrained(source, variant="fp16")
        options = {"variant": "fp16"}
    merge_adapters([adapter], str(source), tmp_path / "out", dtype="fp32", **options)
    expected, found = open_checkpoint(str(tmp_path / "expected")), open_checkpoint(str(tmp_path / "out"))
    for component, tensors in expected.components.items():
        assert found.components[component].keys() == tensors.keys()
        assert all(torch.equal(found.components[component][n].make(), t.make()) for n, t in tensors.items())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_report_tells_the_rounding_of_every_layer(dtype: str, tmp_path: Path) -> None:
    model = load_model("shapes-sd")
    adapter: Adapter = adapter_of(model, "lora")
    merged = merge_adapters([saved(adapter, model, tmp_path)], "shapes-sd", tmp_path / "out", dtype=dtype)
    exact = adapter.materialize(adapter.parameters())
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert {line["name"] for line in report["rounding"]} == exact.keys()
    for line in report["rounding"]:
        weight = exact[line["name"]].detach()
        error = weight.to(kind).float() - weight
        assert line["relative"] == pytest.approx(float(error.abs().max() / weight.abs().max()), rel=1e-3)
        delta = weight - model.unet.get_parameter(line["name"])
        assert line["lost"] == pytest.approx(float(error.norm() / delta.norm()), rel=1e-2)
    assert "largest relative rounding" in str(merged)
    stored = StoredFile(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").tensors()
    assert all(torch.equal(stored[name].make(), weight.to(kind)) for name, weight in exact.items())


def test_files_say_what_they_are(model: LoadedModel, tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    merge_adapters([saved(adapter_of(model, "lora"), model, tmp_path)], model.name, one, form="single-file")
    with safe_open(one, "pt") as file:
        said = file.metadata()
    architecture = "stable-diffusion-xl-v1-base" if model.kind == "sdxl" else "stable-diffusion-v1"
    assert said["modelspec.sai_model_spec"] == "1.0.1" and said["modelspec.architecture"] == architecture
    assert said["modelspec.title"] == f"{model.name} without ring" and said["modelspec.prediction_type"] == "epsilon"
    assert said["modelspec.hash_sha256"] == f"0x{said[PAYLOAD_HASH]}" and said["adapter_mu.method"] == "esd"
    assert "# " + said["modelspec.title"] in one.with_suffix(".md").read_text()


def test_a_wrong_merge_does_not_pass_verification(model: LoadedModel, tmp_path: Path) -> None:
    adapter = saved(adapter_of(model, "lora"), model, tmp_path)
    merge_adapters([adapter], model.name, tmp_path / "out", dtype="fp32", scales=[1.01])
    base = open_checkpoint(model.name)
    with pytest.raises(ModelError, match="is not base \\+ adapter"):
        verify_file(tmp_path / "out", base, [(read_edits(adapter, base), 1.0)], torch.float32)


def test_a_low_rank_adapter_comes_back(model: LoadedModel, tmp_path: Path) -> None:
    adapter = adapter_of(model, "low_rank")
    loaded = load_adapter(model.unet, saved(adapter, model, tmp_path))
    assert loaded.kind == "low_rank" and loaded.subset == adapter.subset
    before, after = adapter.materialize(adapter.parameters()), loaded.materialize(loaded.parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_hub_id_is_fetched_and_named_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = load_model("shapes-sd"), []

    def fetch(*arguments: Any) -> Path:
        asked.append(arguments)
        return Path(model.source)

    monkeypatch.setattr("adapter_mu.models.load._fetch", fetch)
    adapter = saved(adapter_of(model, "lora"), model, tmp_path)
    merge_adapters([adapter], "owner/name", tmp_path / "out", revision="abc", verify=False)
    assert asked == [("owner/name", "abc", None, False)]
    assert "base_model: owner/name" in (tmp_path / "out" / "README.md").read_text()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, terminal = load_model("shapes-sd"), Terminal()
    adapter = saved(adapter_of(model, "lora"), model, tmp_path)
    monkeypatch.setattr("sys.stderr", terminal)
    merge_adapters([adapter], "shapes-sd", tmp_path / "out", verify=False)
    shown = terminal.getvalue()
    assert "merge:   0%" in shown and "B/s]" in shown
