"""A merged folder is the base plus the adapter, for any diffusers; and nothing is ever half-written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from adapter_mu.data.cache import fingerprint
from adapter_mu.errors import ModelError, UserError
from adapter_mu.export.merge import merge, save_folder
from adapter_mu.models import LoadedModel, encode_prompts, load_model, predict_noise, with_unet
from adapter_mu.params import Adapter, make_adapter, save_adapter
from adapter_mu.ship import merge_adapters

STOCK = {"shapes-sd": StableDiffusionPipeline, "shapes-sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module", params=list(STOCK))
def base(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


@pytest.fixture(scope="module")
def sd() -> LoadedModel:
    return load_model("shapes-sd")


def moved(model: LoadedModel, kind: str, subset: str = "non_cross_attention") -> Adapter:
    """An adapter that changes every weight it touches."""
    adapter = make_adapter(model.unet, kind, subset, rank=3, alpha=6.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for theta in adapter.parameters().values():
            theta += 0.02 * torch.randn(theta.shape, generator=generator)
    return adapter


def saved(adapter: Adapter, model: LoadedModel, folder: Path, **facts: str) -> Path:
    path = folder / "adapter.safetensors"
    save_adapter(adapter, path, {"base": model.name, "base_hash": fingerprint(model.unet)} | facts)
    return path


def merged_folder(adapter: Path, base: str, out: Path, *, dtype: str = "fp32", force: bool = False) -> Path:
    """What `adapter-mu merge` writes."""
    merge_adapters([adapter], base, out, dtype=dtype, force=force, verify=False)
    return out


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_stock_diffusers_sees_base_plus_adapter(base: LoadedModel, kind: str, tmp_path: Path) -> None:
    adapter = moved(base, kind)
    out = merged_folder(saved(adapter, base, tmp_path), base.name, tmp_path / "out")
    stock = STOCK[base.name].from_pretrained(out)

    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 700])
    cond = encode_prompts(base, ["a red ring", "a blue star on a white background"])
    added = None if cond.pooled is None else {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    with torch.no_grad():
        live = predict_noise(base, adapter.materialize(adapter.parameters()), x, t, cond)
        plain = predict_noise(base, None, x, t, cond)
        merged = stock.unet(x, t, cond.embeds, added_cond_kwargs=added).sample
    assert (live - merged).norm() <= 1e-5 * live.norm()
    assert (live - plain).norm() > 1e-2 * plain.norm(), "the adapter must change something"
    # The folder is whole: the stock pipeline draws with it, prompts and all.
    stock.set_progress_bar_config(disable=True)
    drawn = stock("a red ring", num_inference_steps=2, guidance_scale=4.0, output_type="pt").images
    assert drawn.shape == (1, 3, 32, 32) and drawn.isfinite().all()


def test_the_base_stays_as_it_was(sd: LoadedModel) -> None:
    before, parts = fingerprint(sd.unet), set(map(id, sd.pipeline.components.values()))
    merged = merge(sd, moved(sd, "dense"))
    assert fingerprint(sd.unet) == before != fingerprint(merged.unet)
    assert set(map(id, sd.pipeline.components.values())) == parts
    assert merged.vae is sd.vae


def test_another_unet_leaves_every_dtype_alone() -> None:
    """diffusers' own from_pipe would cast the shared parts to fp32 behind the given model's back."""
    model = load_model("shapes-sd", dtype=torch.bfloat16)
    with_unet(model, model.unet)
    assert {model.dtype, model.vae.dtype, model.pipeline.text_encoder.dtype} == {torch.bfloat16}
    merged = merge(model, moved(model, "lora"))
    assert {part.dtype for part in (merged.unet, merged.vae, merged.pipeline.text_encoder)} == {torch.bfloat16}


def test_the_saved_dtype_is_the_one_asked_for(sd: LoadedModel, tmp_path: Path) -> None:
    out = merged_folder(saved(moved(sd, "lora"), sd, tmp_path), "shapes-sd", tmp_path / "half", dtype="fp16")
    assert STOCK["shapes-sd"].from_pretrained(out, dtype=torch.float16).unet.dtype == torch.float16
    size = sum(path.stat().st_size for path in (out / "unet").iterdir())
    assert size < 2.1 * sum(p.numel() for p in sd.unet.parameters())


def test_a_wrong_base_is_refused_unless_forced(sd: LoadedModel, tmp_path: Path) -> None:
    adapter = moved(sd, "dense", "cross_attention_kv")
    path = saved(adapter, sd, tmp_path)
    other = save_folder(merge(sd, adapter), tmp_path / "other")  # same shapes, other weights
    for base in (str(other), "shapes-sdxl"):
        with pytest.raises(ModelError) as refused:
            merged_folder(path, base, tmp_path / "out")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert merged_folder(path, str(other), tmp_path / "out", force=True).is_dir()


def test_an_adapter_that_names_no_base_is_merged(sd: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(moved(sd, "lora", "cross_attention_kv"), path)
    assert merged_folder(path, "shapes-sd", tmp_path / "out").is_dir()


def test_an_existing_output_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        merged_folder(tmp_path / "no adapter", "no model", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_when_saving_fails(sd: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, folder: Path, **_: object) -> None:
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", full)
    with pytest.raises(UserError, match="the disk is full.*free some space"):
        save_folder(sd, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(sd: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Writing .* failed"):
        save_folder(sd, tmp_path / "file" / "out")


def test_what_a_killed_merge_left_is_cleared(sd: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / ".out.999999999.part" / "unet").mkdir(parents=True)
    (tmp_path / ".out.999999999.part" / "unet" / "stale.safetensors").write_text("half")
    out = save_folder(sd, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "unet" / "stale.safetensors").exists()


def test_merged_folders_do_not_tell_where_the_base_lay(sd: LoadedModel, tmp_path: Path) -> None:
    out = save_folder(sd, tmp_path / "out")
    told = [path for path in out.rglob("*.json") if sd.source in path.read_text(encoding="utf-8")]
    assert not told
