"""Mistakes and misfortunes: one sentence, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import adapter_of, saved
from safetensors.torch import load_file, save_file

from adapter_mu.cli.main import main
from adapter_mu.export import outputs, streaming
from adapter_mu.models import load_model
from adapter_mu.ship import merge_adapters

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter and a base of its own that tests may copy."""
    folder = tmp_path_factory.mktemp("prepared")
    model = load_model("shapes-sd")
    saved(adapter_of(model, "lora"), model, folder)
    shutil.copytree(model.source, folder / "base")
    return folder


@pytest.fixture
def case(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "case"))


def state(folder: Path) -> dict[str, str]:
    """Every file's hash, so that a loss would show."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def another_base(path: Path) -> None:
    tensors = load_file(path)
    tensors["conv_in.bias"] += 0.5
    save_file(tensors, path, {"format": "pt"})


def another_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3].contiguous()
    save_file(tensors, path, {"format": "pt"})


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated adapter": (truncate, "adapter.safetensors", "is truncated"),
    "bit flipped in the adapter": (flip, "adapter.safetensors", "is damaged: its tensors do not have the hash"),
    "bit flipped in the base": (flip, f"base/{UNET}", "was trained on other weights"),
    "truncated base": (truncate, f"base/{UNET}", "it is truncated"),
    "base with other weights": (another_base, f"base/{UNET}", "was trained on other weights"),
    "base with another shape": (another_shape, f"base/{UNET}", "where its configuration asks for"),
    "no adapter": (Path.unlink, "adapter.safetensors", "there is no adapter file"),
    "weights missing": (Path.unlink, f"base/{UNET}", "has no single set of .safetensors weights"),
    "base that is no pipeline": (Path.unlink, "base/model_index.json", "has no model_index.json"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["diffusers", "single-file"])
def test_what_does_not_fit_is_one_sentence(
    name: str, form: str, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, where, sentence = CASES[name]
    spoil(case / where)
    before, out = state(tmp_path), tmp_path / ("out" if form == "diffusers" else "out.safetensors")
    arguments = ["merge", str(case / "adapter.safetensors"), "--base", str(case / "base"), "--out", str(out)]
    assert main([*arguments, "--format", form]) == 2
    refused(capsys.readouterr().err, sentence)
    assert state(tmp_path) == before


def refused(said: str, sentence: str) -> None:
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("adapter-mu: "), said
    assert sentence in lines[0], said


def test_a_flipped_bit_in_what_we_wrote_is_found(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any model that adapter_mu wrote carries its hash, the VAE and the text encoder too."""
    merge_adapters([case / "adapter.safetensors"], "shapes-sd", tmp_path / "one")
    flip(tmp_path / "one" / "vae" / "diffusion_pytorch_model.safetensors")
    arguments = ["merge", str(case / "adapter.safetensors"), "--base", str(tmp_path / "one"), "--force"]
    assert main([*arguments, "--out", str(tmp_path / "two")]) == 2
    refused(capsys.readouterr().err, "is damaged: its tensors do not have the hash")


@pytest.mark.parametrize("what", ["adapter", "base file", "base folder"])
def test_pickles_are_refused(what: str, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, base = case / "adapter.safetensors", case / "base"
    if what == "adapter":
        adapter = case / "adapter.pt"
        torch.save({}, adapter)
    elif what == "base file":
        base = case / "base.ckpt"
        torch.save({}, base)
    else:
        torch.save({}, base / "unet" / "diffusion_pytorch_model.bin")
        (base / UNET).unlink()
    assert main(["merge", str(adapter), "--base", str(base), "--out", str(tmp_path / "out")]) == 2
    refused(capsys.readouterr().err, "is a pickle, which can run code")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", str(case / "adapter.safetensors"), "--base", "shapes-sdxl", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--force"]) == 2
    refused(capsys.readouterr().err, "wrong --base?")


@pytest.mark.parametrize("form", ["diffusers", "single-file"])
def test_values_that_are_not_finite_are_refused(
    form: str, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    not_finite(case / "base" / UNET)
    before, out = state(tmp_path), tmp_path / ("out" if form == "diffusers" else "out.safetensors")
    arguments = ["merge", str(case / "adapter.safetensors"), "--base", str(case / "base"), "--out", str(out), "--force"]
    assert main([*arguments, "--format", form]) == 2
    refused(capsys.readouterr().err, "not finite")
    assert state(tmp_path) == before


@pytest.mark.parametrize("form", ["diffusers", "single-file"])
@pytest.mark.parametrize("when", ["known before", "while writing"])
def test_a_full_disk_leaves_nothing(
    form: str,
    when: str,
    case: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if when == "known before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    else:
        whole = streaming._blocks

        def half(*arguments: object) -> object:
            for i, block in enumerate(whole(*arguments)):  # type: ignore[arg-type]
                if i == 20:
                    raise OSError(errno.ENOSPC, "No space left on device")
                yield block

        monkeypatch.setattr(streaming, "_blocks", half)
    before, out = state(tmp_path), tmp_path / "deep" / ("out" if form == "diffusers" else "out.safetensors")
    arguments = ["merge", str(case / "adapter.safetensors"), "--base", str(case / "base"), "--out", str(out)]
    assert main([*arguments, "--format", form]) == 2
    refused(capsys.readouterr().err, "free some space or choose another output")
    assert state(tmp_path) == before


def in_a_process(work: Callable[[], int]) -> BaseProcess:
    """`work` in a process of its own that ends with its result; forked, because importing torch takes long."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(work()))
    process.start()
    return process


def test_a_real_limit_on_file_size_is_told_too(case: Path, tmp_path: Path) -> None:
    """The kernel refuses the write: the error comes from `write`, not from a double."""
    arguments = [
        "merge",
        str(case / "adapter.safetensors"),
        "--base",
        str(case / "base"),
        "--out",
        str(tmp_path / "out"),
    ]
    before = state(tmp_path)

    def limited() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        return main(arguments)

    process = in_a_process(limited)
    process.join(60)
    assert process.exitcode == 2
    assert state(tmp_path) == before


@pytest.mark.parametrize("form", ["diffusers", "single-file"])
def test_killed_half_way_it_leaves_nothing_that_looks_finished(
    form: str, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results" / ("out" if form == "diffusers" else "out.safetensors")
    arguments = ["merge", str(case / "adapter.safetensors"), "--base", str(case / "base"), "--out", str(out)]
    whole = streaming._blocks

    def slow(*given: Any) -> Iterator[memoryview]:
        for block in whole(*given):
            yield block
            time.sleep(0.02)

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "_blocks", slow)
        process = in_a_process(lambda: main([*arguments, "--format", form]))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("results/.out*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.join()
    left = [path.name for path in out.parent.iterdir()]
    assert left and all(name.startswith(".") and name.endswith(".part") for name in left), left
    assert main([*arguments, "--format", form, "--no-verify"]) == 0
    assert out.exists() and not list(out.parent.glob(".*"))


def test_an_existing_output_is_never_touched(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(case)
    for out in (case / "base", case / "base" / UNET):
        arguments = ["merge", str(case / "adapter.safetensors"), "--base", str(case / "base"), "--out", str(out)]
        assert main(arguments) == 2
        refused(capsys.readouterr().err, "exists already")
    assert state(case) == before


def test_the_parts_that_are_not_weights_are_written_whole(case: Path, tmp_path: Path) -> None:
    """Configuration without this machine's paths, no pickles, and a safety checker that is not there is not named."""
    torch.save({}, case / "base" / "unet" / "diffusion_pytorch_model.bin")
    merge_adapters([case / "adapter.safetensors"], str(case / "base"), tmp_path / "out", verify=False)
    files = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".bin", ".pt"))]
    assert "README.md" in files and "merge.json" in files
    assert "_name_or_path" not in (tmp_path / "out" / "unet" / "config.json").read_text()
    assert outputs._EMA == "model_ema."
