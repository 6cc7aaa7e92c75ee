"""Extraction, verification, cards and upload."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import PIPELINES, adapter_of, noise, parts, relative, saved
from huggingface_hub import ModelCard

from adapter_mu.cli.main import main
from adapter_mu.evaluate.statistics import Row
from adapter_mu.export.checkpoint import open_checkpoint
from adapter_mu.export.extract import extract, low_rank
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.ship import merge_adapters


@pytest.fixture(scope="module", params=list(PIPELINES))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


@pytest.mark.parametrize("shape", [(40, 30), (24, 12, 3, 3), (4, 30, 3, 3)])
def test_the_factors_are_the_best_of_their_rank(shape: tuple[int, ...]) -> None:
    """Against the exact singular value decomposition (Eckart and Young)."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(shape, generator=generator) * torch.logspace(0, -2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    found = low_rank(delta, 6, generator)
    values = torch.linalg.svdvals(delta.flatten(1))
    best = float(values[found.rank :].square().sum())
    assert found.shape == shape and found.rank == min(6, shape[0])
    assert float((delta - found.delta()).square().sum()) <= best * 1.001 + 1e-8


def test_a_low_rank_difference_comes_back_whole(model: LoadedModel, tmp_path: Path) -> None:
    """What was merged at rank 3 is extracted at rank 3 by the command line, and merges to the same model again."""
    adapter = saved(adapter_of(model, "lora", rank=3), model, tmp_path)
    merge_adapters([adapter], model.name, tmp_path / "tuned", dtype="fp32", verify=False)
    out = tmp_path / "lora.safetensors"
    arguments = ["extract", str(tmp_path / "tuned"), "--base", model.name, "--rank", "3", "--out", str(out)]
    assert main([*arguments, "--format", "peft"]) == 0
    energies = json.loads(out.with_suffix(".energy.json").read_text())
    assert len(energies) == len(adapter_of(model, "lora", rank=3).parameters()) / 2
    assert min(line["energy"] for line in energies) > 0.999999
    merge_adapters([out], model.name, tmp_path / "again", dtype="fp32")
    tuned, again = (PIPELINES[model.name].from_pretrained(tmp_path / name) for name in ("tuned", "again"))
    assert relative(noise(again, model), noise(tuned, model)) < 1e-5


def test_energy_is_what_the_factors_keep_and_the_rest_is_said(model: LoadedModel, tmp_path: Path) -> None:
    """A dense change of everything, text encoders too: rank 4 keeps a part of each layer and no bias."""
    pipeline = PIPELINES[model.name].from_pretrained(model.source, torch_dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, part in parts(pipeline).items():
            for parameter in part.parameters() if name != "vae" else ():
                parameter.add_(0.01 * torch.randn_like(parameter))
    pipeline.save_pretrained(tmp_path / "tuned")
    base, tuned = open_checkpoint(model.name), open_checkpoint(str(tmp_path / "tuned"))
    found = extract(tuned, base, 4)
    assert set(found.edits.components) == set(parts(pipeline)) - {"vae"}
    for kept in found.kept:
        weights = (opened.components[kept.component][kept.name].make().float() for opened in (tuned, base))
        delta = next(weights) - next(weights)
        edit = found.edits.components[kept.component].get(kept.name)
        expected = 0.0 if edit is None else 1 - float((delta - edit.delta()).square().sum() / delta.square().sum())
        assert kept.energy == pytest.approx(expected, abs=1e-4)
        assert edit is not None or delta.dim() == 1 or "embedding" in kept.name or kept.name.startswith("text_proj")
    assert 0.05 < found.energy < 0.9 and "which no LoRA holds" in str(found)


def test_models_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--rank", "4", "--out", str(tmp_path / "out.safetensors")]
    assert main(["extract", "shapes-sd", "--base", "shapes-sd", *out]) == 2
    assert "do not differ" in capsys.readouterr().err
    assert main(["extract", "shapes-sdxl", "--base", "shapes-sd", *out]) == 2
    assert "is sdxl, but 'shapes-sd' is sd" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: recipe, two arms with adapters, one of them merged, results."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = load_model("shapes-sd")
    for seed, arm in enumerate(("unlearned", "meta-unlearned")):
        (folder / "arms" / arm).mkdir(parents=True)
        saved(adapter_of(model, "lora", seed=seed), model, folder / "arms" / arm, recipe="mine", recipe_hash="0abc")
    merge_adapters([folder / "arms/unlearned/adapter.safetensors"], "shapes-sd", folder / "arms/unlearned/merged")
    from adapter_mu.recipe import load_recipe

    recipe = load_recipe("shapes/demo")
    import yaml

    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    rows = [
        Row("base", "none", 4.0, 0, 97.0, 90.0, 99.0, 95.0, 40),
        Row("unlearned", "none", 1.5, 0, 2.0, 0.5, 8.0, 91.0, 40),
        Row("unlearned", "malicious", 1.5, 20, 55.0, 40.0, 69.0, 90.0, 40),
        Row("unlearned", "malicious", 4.0, 20, 62.0, 46.0, 75.0, 88.0, 40),
        Row("meta-unlearned", "malicious", 4.0, 20, 12.0, 5.0, 26.0, 88.0, 40),
    ]
    (folder / "results.json").write_text(json.dumps({"rows": [asdict(row) for row in rows], "meta": {}}))
    return folder


def test_verify_opens_the_model_as_others_would(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = run / "arms" / "unlearned" / "merged"
    assert main(["verify", str(merged), "--against", str(run)]) == 0
    assert "noise predictions differ by" in capsys.readouterr().out
    single = tmp_path / "single.safetensors"
    adapter = str(run / "arms" / "meta-unlearned" / "adapter.safetensors")
    options = ["--format", "single-file", "--dtype", "fp32", "--out", str(single)]
    assert main(["merge", adapter, "--base", "shapes-sd", *options]) == 0
    assert main(["verify", str(single), "--against", str(run), "--arm", "meta-unlearned"]) == 0
    capsys.readouterr()
    assert main(["verify", str(single), "--against", str(run), "--arm", "unlearned"]) == 2
    assert "is not base + adapter" in capsys.readouterr().err
    assert main(["verify", str(single), "--against", str(run)]) == 2
    assert "say which arm" in capsys.readouterr().err
    assert main(["verify", str(single), "--against", str(tmp_path)]) == 2
    assert "has no recipe.yaml" in capsys.readouterr().err


def test_verify_looks_at_the_other_models_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = Path(shutil.copytree(run / "arms" / "unlearned" / "merged", tmp_path / "merged"))
    from safetensors.torch import load_file, save_file

    weights = merged / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors[next(name for name in tensors if name.endswith("fc1.weight"))] += 0.2
    save_file(tensors, weights, {"format": "pt"})
    assert main(["verify", str(merged), "--against", str(run), "--arm", "unlearned"]) == 2
    assert "its text_encoder 'encoder.layers.0.mlp.fc1.weight' is another" in capsys.readouterr().err


def test_the_card_says_what_was_done_and_what_came_back(run: Path, tmp_path: Path) -> None:
    text = (run / "arms" / "unlearned" / "merged" / "README.md").read_text()
    merge_adapters([run / "arms/unlearned/adapter.safetensors"], "shapes-sd", tmp_path / "out", verify=False)
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict()["library_name"] == "diffusers" and "unlearning" in card.data.to_dict()["tags"]
    for said in ("*ring*: method `esd`, recipe `mine` (0abc)", "What is not promised", "delay, not immunity"):
        assert said in text, said
    assert "| unlearned | malicious | 20 | 62.0 | 46.0 to 75.0 | 4 | 88.0 | 40 |" in text
    assert "| base | before any | 0 | 97.0" in text and "meta-unlearned" not in text
    model = load_model("shapes-sd")
    merge_adapters([saved(adapter_of(model, "dense"), model, tmp_path)], "shapes-sd", tmp_path / "alone", verify=False)
    assert "No attack was recorded" in (tmp_path / "alone" / "README.md").read_text()


class Hub:
    """Stands in for huggingface_hub.HfApi; remembers what it was asked."""

    def __init__(self, private: bool) -> None:
        self.private, self.calls = private, []  # type: ignore[var-annotated]

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append(("create", repo, options))

    def repo_info(self, repo: str) -> Any:
        return type("Info", (), {"private": self.private})()

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("folder", options))

    def upload_file(self, **options: Any) -> None:
        self.calls.append(("file", options["path_in_repo"]))


def test_upload_is_private_unless_told_otherwise(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, hub = run / "arms" / "unlearned" / "merged", Hub(private=True)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert main(["push", str(merged), "--repo", "me/forgot"]) == 0
    assert hub.calls[0] == ("create", "me/forgot", {"private": True, "exist_ok": True}) and hub.calls[1][0] == "folder"
    hub.private, hub.calls = False, []
    assert main(["push", str(merged), "--repo", "me/forgot"]) == 2
    assert "exists and is public" in capsys.readouterr().err and len(hub.calls) == 1
    assert main(["push", str(merged), "--repo", "me/forgot", "--public"]) == 0
    assert main(["push", str(run), "--repo", "me/forgot"]) == 2
    assert "has no model card" in capsys.readouterr().err
