"""Parts of other tools' checkpoints in place of the base's, and `method: none`, which starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import tiny_model
from torch import Tensor

from adapter_mu.data.cache import fingerprint
from adapter_mu.errors import UserError
from adapter_mu.export.merge import save_folder
from adapter_mu.methods import StartMethod, new_method, trains
from adapter_mu.models import LoadedModel, check_part, encode_prompts, with_parts

MODEL = tiny_model("sd")
OTHER = tiny_model("sd", seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with other weights in every part."""
    return save_folder(OTHER, tmp_path_factory.mktemp("other") / "unlearned")


def start(model: LoadedModel, **options: Any) -> LoadedModel:
    method = new_method("none", options)
    assert isinstance(method, StartMethod)
    method.check(model)  # type: ignore[attr-defined]
    found = method.start(model, [])
    assert isinstance(found, LoadedModel)
    return found


def tensors(model: LoadedModel, part: str) -> dict[str, Tensor]:
    return dict(getattr(model.pipeline, part).state_dict())


def test_a_replaced_unet_and_text_encoder_are_the_others_and_the_rest_the_bases(other: Path) -> None:
    before = {part: fingerprint(getattr(MODEL.pipeline, part)) for part in ("unet", "text_encoder", "vae")}
    found = start(MODEL, unet=str(other / "unet"), text_encoder=str(other / "text_encoder" / "model.safetensors"))
    for part in ("unet", "text_encoder"):
        assert fingerprint(getattr(found.pipeline, part)) == fingerprint(getattr(OTHER.pipeline, part))
    assert found.pipeline.vae is MODEL.pipeline.vae
    assert {part: fingerprint(getattr(MODEL.pipeline, part)) for part in before} == before
    ours, theirs, bases = (encode_prompts(model, ["a ring"]).embeds for model in (found, OTHER, MODEL))
    assert torch.equal(ours, theirs) and not torch.equal(ours, bases)


def test_a_file_may_hold_what_was_changed_only(tmp_path: Path) -> None:
    """As UCE's and ESD's own code saves its results."""
    name = next(name for name in tensors(MODEL, "unet") if name.endswith("attn2.to_k.weight"))
    save_file({name: torch.ones_like(tensors(MODEL, "unet")[name])}, tmp_path / "uce.safetensors")
    found, base = tensors(start(MODEL, unet=str(tmp_path / "uce.safetensors")), "unet"), tensors(MODEL, "unet")
    assert (found[name] == 1).all() and all(torch.equal(found[n], base[n]) for n in base if n != name)


def test_names_of_older_transformers_are_understood(tmp_path: Path) -> None:
    state = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in tensors(OTHER, "text_encoder").items()}
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, tmp_path / "text.safetensors")
    found = start(MODEL, text_encoder=str(tmp_path / "text.safetensors"))
    assert fingerprint(found.pipeline.text_encoder) == fingerprint(OTHER.pipeline.text_encoder)
    assert found.unet is MODEL.unet


def test_a_whole_checkpoint(other: Path) -> None:
    found = start(MODEL, checkpoint=str(other))
    assert fingerprint(found.unet) == fingerprint(OTHER.unet) and found.name == "unlearned"


def test_the_second_text_encoder_of_sdxl(tmp_path: Path) -> None:
    model, changed = tiny_model("sdxl"), tiny_model("sdxl", seed=1)
    save_file(dict(tensors(changed, "text_encoder_2")), tmp_path / "second.safetensors")
    found = start(model, text_encoder_2=str(tmp_path / "second.safetensors"))
    assert fingerprint(found.pipeline.text_encoder_2) == fingerprint(changed.pipeline.text_encoder_2)
    assert found.pipeline.text_encoder is model.pipeline.text_encoder
    assert not torch.equal(encode_prompts(found, ["x"]).pooled, encode_prompts(model, ["x"]).pooled)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "name either a `checkpoint`, or parts"),
        ({"checkpoint": "x", "unet": "y"}, "name either a `checkpoint`, or parts"),
        ({"unet": "nowhere.safetensors"}, "there is no file or folder 'nowhere.safetensors'"),
        ({"checkpoint": "unlearned.ckpt"}, "is a pickle.*convert it to .safetensors first"),
        ({"unet": "old.pt"}, "is a pickle.*convert it to .safetensors first"),
        ({"text_encoder": "pickled"}, "pytorch_model.bin' is a pickle"),
        ({"text_encoder": "empty"}, "holds no .safetensors file"),
        ({"vae": "x"}, "'method.vae': unknown key"),
    ],
)
def test_what_cannot_be_a_start_is_refused_before_any_work(
    options: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.pt").write_bytes(b"\x80")
    for folder in ("empty", "pickled"):
        Path(folder).mkdir()
    Path("pickled/pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match=sentence) as caught:
        new_method("none", options)
    assert "\n" not in str(caught.value) and "Value error" not in str(caught.value)


def test_what_does_not_fit_the_base_is_refused_from_headers(tmp_path: Path, other: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="holds 'lora_unet_x.lora_up.weight', which the base's unet does not have"):
        check_part(MODEL, "unet", path)
    name = next(iter(tensors(MODEL, "unet")))
    save_file({name: torch.ones(1, 2, 3)}, path)
    with pytest.raises(UserError, match="another architecture"):
        with_parts(MODEL, {"unet": path})
    with pytest.raises(UserError, match="has no text_encoder_2"):
        check_part(MODEL, "text_encoder_2", path)
    method = new_method("none", {"checkpoint": str(other)})
    with pytest.raises(UserError, match="is sd, but the recipe's base is sdxl"):
        method.check(tiny_model("sdxl"))  # type: ignore[union-attr]


def test_which_arms_train() -> None:
    assert trains("esd", None) and trains("esd", {}) and trains("none", {})
    assert not trains("none", None) and not trains("uce", None)
