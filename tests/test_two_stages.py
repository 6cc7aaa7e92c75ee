"""Runs that start unlearned: a closed-form edit or somebody's checkpoint first, the meta objective on top."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import adapter_mu.stages.training as training
from adapter_mu.cli.main import main
from adapter_mu.data.cache import fingerprint
from adapter_mu.models import encode_prompts, load_model
from adapter_mu.params import load_adapter
from adapter_mu.params.files import read_metadata
from adapter_mu.train import Trainer

RECIPE = """
extends: shapes/demo
name: two stages
workers: 1
data:
  forget: {images: 4}
  related: {images: 4}
  unrelated: {images: 4}
  sampler: {steps: 2}
  keep_only_shown: false
method: METHOD
adapter: {subset: cross_attention_kv}
train: {steps: 4, save_every: 2, batch_size: 2}
meta: {order: first_order}
attacks: null
evaluate: null
arms: {unlearned: {meta: null, train: {steps: 0}}, meta-unlearned: {}}
"""
UCE = "{name: uce, erase: [ring]}"
ARMS = ("unlearned", "meta-unlearned")


def adapter_mu(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def ran(place: Path, method: str) -> tuple[Path, Path]:
    """The recipe's file and the run's folder."""
    recipe, folder = place / "recipe.yaml", place / "run"
    recipe.write_text(RECIPE.replace("METHOD", method), encoding="utf-8")
    code, _, said = adapter_mu("run", recipe, "--out", folder)
    assert code == 0, said
    return recipe, folder


@pytest.fixture(scope="module")
def uce(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return ran(tmp_path_factory.mktemp("uce"), UCE)


def unet(folder: Path, arm: str) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder / "arms" / arm / "merged")).unet.state_dict())


def test_merged_is_base_and_edit_and_adapter(uce: tuple[Path, Path]) -> None:
    _, folder = uce
    base = load_model("shapes-sd").unet
    arm = folder / "arms" / "meta-unlearned"
    edit = load_adapter(base, arm / "edit.safetensors")
    expected = {name: tensor.double() for name, tensor in base.state_dict().items()}
    for layer in {name.rsplit(".lora_", 1)[0] for name in edit.state_dict()}:
        down, up = (edit.state_dict()[f"{layer}.lora_{half}.weight"].double() for half in "AB")
        expected[f"{layer}.weight"] += up @ down
    plain = unet(folder, "unlearned")
    for name, tensor in expected.items():
        torch.testing.assert_close(plain[name].double(), tensor, rtol=1e-6, atol=1e-6)
    for name, tensor in load_adapter(base, arm / "adapter.safetensors").state_dict().items():
        assert tensor.abs().max() > 0
        expected[name] += tensor.double()
    for name, tensor in unet(folder, "meta-unlearned").items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_the_folder_holds_what_each_arm_needs(uce: tuple[Path, Path]) -> None:
    recipe, folder = uce
    names = {arm: {path.name for path in (folder / "arms" / arm).iterdir()} for arm in ARMS}
    assert names["unlearned"] == {"edit.safetensors", "merged"}
    assert names["meta-unlearned"] == {"edit.safetensors", "adapter.safetensors", "merged"}
    lines = (folder / "training_meta-unlearned.jsonl").read_text().splitlines()
    assert len(lines) == 4 and not (folder / "training_unlearned.jsonl").exists()
    assert "unlearn" not in json.loads(lines[0]), "nothing is unlearned twice"
    said = adapter_mu("run", recipe, "--out", folder)
    assert said[2] == "everything was done before\n"
    assert f"unlearned: {folder}/arms/unlearned/edit.safetensors, merged/" in said[1].splitlines()


def test_merging_and_verifying_an_arms_folder(uce: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = uce
    for arm in ARMS:
        place = folder / "arms" / arm
        into = ("--base", "shapes-sd", "--dtype", "fp32", "--out", tmp_path / arm)
        assert adapter_mu("merge", place, *into)[0] == 0
        found, expected = load_model(str(tmp_path / arm)).unet.state_dict(), unet(folder, arm)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        assert adapter_mu("verify", place / "merged", "--against", folder)[0] == 0


def test_an_adapter_is_not_merged_without_its_edit(uce: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = uce[1] / "arms" / "meta-unlearned" / "adapter.safetensors"
    into = ("--base", "shapes-sd", "--out", tmp_path / "out")
    code, _, said = adapter_mu("merge", adapter, *into)
    assert code == 2 and "trained on top of the edit.safetensors" in said and not (tmp_path / "out").exists()
    assert adapter_mu("merge", adapter.with_name("edit.safetensors"), adapter, *into)[0] == 0
    code, _, said = adapter_mu("merge", tmp_path, "--base", "shapes-sd", "--out", tmp_path / "other")
    assert code == 2 and "holds neither edit.safetensors nor adapter.safetensors" in said


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(owner: Any, name: str, call: int, *arguments: str | Path) -> int:
    """The exit code of a command line in a process of its own that dies right after that call of `owner.name`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0
    function: Callable[..., Any] = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs)
        if calls == call:
            os._exit(9)
        return result

    try:
        setattr(owner, name, dying)
        os._exit(adapter_mu(*arguments)[0])
    finally:
        os._exit(1)


def test_a_run_that_dies_again_and_again_ends_in_the_same_bytes(uce: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = uce
    command = ("run", recipe, "--out", tmp_path / "run")
    assert killed(training, "starting_model", 1, *command) == 9
    assert killed(training, "save_folder", 1, *command) == 9
    assert killed(Trainer, "step", 3, *command) == 9
    assert killed(training, "save_adapter", 1, *command) == 9
    assert adapter_mu(*command)[0] == 0
    left, expected = contents(tmp_path / "run"), contents(whole)
    assert left.keys() == expected.keys()
    assert [name for name in left if left[name] != expected[name]] == []


def test_somebody_elses_unet_and_text_encoder(tmp_path: Path) -> None:
    """Pictures are the base's, captions are encoded by the text encoder that is merged, and it is saved with it."""
    model = load_model("shapes-sd")
    kept = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    theirs = {name: tensor * 1.01 for name, tensor in kept.items()}
    words = {name: tensor * 1.02 for name, tensor in model.pipeline.text_encoder.state_dict().items()}
    save_file(theirs, tmp_path / "unet.safetensors")
    save_file(words, tmp_path / "text.safetensors")
    seen: list[torch.Tensor] = []
    method = f"{{name: none, unet: {tmp_path}/unet.safetensors, text_encoder: {tmp_path}/text.safetensors}}"
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer.step
        patch.setattr(
            Trainer, "step", lambda self, n: (seen.append(self.sets.forget.condition.embeds), step(self, n))[1]
        )
        _, folder = ran(tmp_path, method)
    merged = load_model(str(folder / "arms" / "meta-unlearned" / "merged"))
    plain = load_model(str(folder / "arms" / "unlearned" / "merged"))
    assert fingerprint(merged.pipeline.text_encoder) == fingerprint(plain.pipeline.text_encoder)
    for name, tensor in plain.unet.state_dict().items():
        assert torch.equal(tensor, theirs[name])
    own = encode_prompts(plain, ["a photo of a ring"]).embeds
    assert not torch.equal(own, encode_prompts(model, ["a photo of a ring"]).embeds)
    assert len(seen) == 4 and any(torch.equal(row, e) for row in seen[0] for e in _encoded(plain, folder, tmp_path))
    facts = read_metadata(folder / "arms" / "meta-unlearned" / "adapter.safetensors")
    assert facts["base_hash"] == fingerprint(plain.unet) and "unet.safetensors" in facts["base"]
    delta = load_adapter(model.unet, folder / "arms" / "meta-unlearned" / "adapter.safetensors").state_dict()
    for name, tensor in merged.unet.state_dict().items():
        expected = theirs[name] + delta[name] if name in delta else theirs[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)


def _encoded(model: Any, folder: Path, place: Path) -> list[torch.Tensor]:
    from adapter_mu.data.prompts import expand
    from adapter_mu.recipe import load_recipe

    texts = [prompt.text for prompt in expand(load_recipe(str(place / "recipe.yaml")).data.forget)]
    return list(encode_prompts(model, texts).embeds)
