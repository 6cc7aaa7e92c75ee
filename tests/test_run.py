"""A whole miniature run from the command line: what it leaves, and that it always ends in the same bytes."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

import adapter_mu.run as verbs
import adapter_mu.stages.parallel as parallel
import adapter_mu.stages.scoring as scoring
from adapter_mu.cli.main import main
from adapter_mu.data.cache import fingerprint
from adapter_mu.evaluate.statistics import Row
from adapter_mu.models import load_model
from adapter_mu.params.files import read_metadata
from adapter_mu.train import Trainer

MINIATURE = """
extends: shapes/{parent}
name: miniature
workers: 1
data:
  forget: {{images: 4}}
  related: {{images: 4}}
  unrelated: {{images: 4}}
  sampler: {{steps: 2}}
  keep_only_shown: false
method: {{trajectories: 2, sampler_steps: 2}}
train: {{steps: 4, save_every: 2, batch_size: 2}}
attacks:
  malicious: {{data: {{images: 4}}, steps: [1, 2], batch_size: 2}}
  clean: {{data: {{images: 4}}, steps: [1], batch_size: 2}}
evaluate: {{steps: 2, guidance: [1.5, 4.0], concept: {{images: 4}}, benign: {{images: 4}}}}
"""
TRAINED = ("unlearned", "meta-unlearned")
COLUMNS = {("none", 0), ("malicious", 1), ("malicious", 2), ("clean", 1)}
KILLED = 9


def adapter_mu(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def killed(owner: Any, name: str, call: int, *arguments: str | Path) -> int:
    """The exit code of a command line, run in a process of its own that dies in that call of `owner.name`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        setattr(owner, name, dying(getattr(owner, name), call, lambda: os._exit(KILLED)))
        os._exit(adapter_mu(*arguments)[0])
    finally:
        os._exit(1)


def dying(function: Callable[..., Any], call: int, end: Callable[[], object]) -> Callable[..., Any]:
    """`function`, but in the given call `end` comes right after its work."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs)
        if calls == call:
            end()
        return result

    return counted


def interrupt() -> None:
    raise KeyboardInterrupt


@dataclass
class Finished:
    recipe: Path
    folder: Path
    code: int
    table: str
    progress: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.folder / "results.json").read_text())["rows"]
        return rows


def finish(parent: str, place: Path, *overrides: str) -> Finished:
    recipe, folder = place / "miniature.yaml", place / "run"
    recipe.write_text(MINIATURE.format(parent=parent), encoding="utf-8")
    return Finished(recipe, folder, *adapter_mu("run", recipe, "--out", folder, *overrides))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish("demo", tmp_path_factory.mktemp("finished"))


def contents(folder: Path, times: bool = False) -> dict[str, tuple[int, bytes]]:
    """Bytes of every file, and when it was written if asked for."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns if times else 0, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots where the report is not the point: they take seconds."""
    monkeypatch.setattr(verbs, "build_report", lambda folder: (folder / "report.html").write_text("report"))


def check_results(run: Finished, *arms: str) -> None:
    """Every cell of the base and these arms, in rows of exactly the documented fields."""
    assert run.code == 0
    assert all(row.keys() == {field.name for field in fields(Row)} for row in run.rows)
    cells = [(row["arm"], row["attack"], row["step"], row["guidance"]) for row in run.rows]
    expected = {("base", "none", 0)} | {(arm, *column) for arm in arms for column in COLUMNS}
    assert sorted(cells) == sorted((*cell, guidance) for cell in expected for guidance in (1.5, 4.0))
    for row in run.rows:
        assert 0 <= row["low"] <= row["score"] <= row["high"] <= 100 and 0 <= row["benign"] <= 100
        assert row["images"] == 4 and row["score"] % 25 == 0


def test_the_results_are_complete(finished: Finished) -> None:
    check_results(finished, *TRAINED)


def test_the_table_and_the_way_to_everything_are_printed(finished: Finished) -> None:
    lines = finished.table.splitlines()
    assert [line.split()[0] for line in lines if " | " in line][2:] == ["base", *TRAINED]
    assert f"report: {finished.folder}/report.html" in lines
    assert all(f"{arm}: {finished.folder}/arms/{arm}/adapter.safetensors, merged/" in lines for arm in TRAINED)


def test_every_stage_has_a_numbered_header(finished: Finished) -> None:
    headers = re.findall(r"^\[(\d+)/(\d+)\] (.+)$", finished.progress, re.M)
    assert [int(number) for number, _, _ in headers] == list(range(1, 12))
    assert {total for _, total, _ in headers} == {"11"}
    assert "meta-unlearned: malicious attack (2 steps)" in [text for _, _, text in headers]
    assert len(finished.progress.splitlines()) == 11, "and nothing else when nobody watches"


def test_the_folder_holds_what_a_run_leaves(finished: Finished) -> None:
    folder = finished.folder
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.yaml", "environment.json", "results.json", "cache", "pictures", "arms"),
        *("report.html", "report.json", "results.csv", "plots"),
        *(f"training_{arm}.jsonl" for arm in TRAINED),
    }
    for arm in TRAINED:
        made = {path.name for path in (folder / "arms" / arm).iterdir()}
        assert made == {"adapter.safetensors", "merged", "scores.jsonl", "scored_model.json", "attacks.json"}
        assert len((folder / f"training_{arm}.jsonl").read_text().splitlines()) == 4
    assert len(list((folder / "pictures").iterdir())) == len(finished.rows)


def test_the_merged_models_open_and_differ(finished: Finished) -> None:
    base = load_model("shapes-sd")
    merged = [StableDiffusionPipeline.from_pretrained(finished.folder / "arms" / arm / "merged") for arm in TRAINED]
    assert len({fingerprint(unet) for unet in (base.unet, *(pipeline.unet for pipeline in merged))}) == 3
    facts = read_metadata(finished.folder / "arms" / "unlearned" / "adapter.safetensors")
    assert facts["base_hash"] == fingerprint(base.unet)
    assert (facts["base"], facts["concept"], facts["method"]) == ("shapes-sd", "ring", "esd")


def test_a_finished_run_is_only_shown_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        pytest.fail("a finished run needs no model")

    monkeypatch.setattr(verbs, "load_base", work)
    before = contents(finished.folder, times=True)
    code, table, progress = adapter_mu("run", finished.recipe, "--out", finished.folder)
    assert (code, table) == (0, finished.table)
    assert "done before" in progress
    assert contents(finished.folder, times=True) == before


def test_a_run_that_dies_again_and_again_ends_in_the_same_bytes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while training, saving, scoring, attacking, reporting; and once stopped with Ctrl-C."""
    folder = tmp_path / "run"
    command = ("run", finished.recipe, "--out", folder)
    arm = folder / "arms" / "unlearned"

    assert killed(Trainer, "step", 3, *command) == KILLED
    assert (arm / "train.safetensors").is_file() and not (arm / "adapter.safetensors").exists()
    assert killed(StableDiffusionPipeline, "save_pretrained", 1, *command) == KILLED
    assert (arm / "adapter.safetensors").is_file() and not (arm / "merged").exists()
    assert killed(scoring, "score_row", 4, *command) == KILLED  # in the attack, between the two guidance scales
    rows = (arm / "scores.jsonl").read_text().splitlines()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying(Trainer.step, 4, interrupt))  # in the second arm
        code, table, progress = adapter_mu(*command)
    assert (code, table) == (130, "")
    assert progress.splitlines()[-1] == "adapter-mu: stopped; the same command continues from what is saved."
    assert "unlearned: training, done before" in progress
    assert (arm / "scores.jsonl").read_text().splitlines()[: len(rows)] == rows
    assert killed(verbs, "write_text", 1, *command) == KILLED
    assert (folder / "results.json").is_file() and not (folder / "report.html").exists()

    code, table, _ = adapter_mu(*command)
    assert (code, table) == (0, finished.table.replace(str(finished.folder), str(folder)))
    left, expected = contents(folder), contents(finished.folder)
    assert left.keys() == expected.keys()
    placed = re.compile(r"(scored_model|results)\.json$")  # say where the models lie
    here, there = str(folder).encode(), str(finished.folder).encode()
    moved = {name: left[name][1].replace(here, there) if placed.search(name) else left[name][1] for name in left}
    assert [name for name in moved if moved[name] != expected[name][1]] == []


def test_another_recipe_does_not_get_the_folder(finished: Finished) -> None:
    before = contents(finished.folder, times=True)
    code, table, said = adapter_mu("run", finished.recipe, "train.steps=5", "--out", finished.folder)
    assert (code, table) == (2, "")
    assert (
        said
        == f"adapter-mu: {finished.folder} holds a run of another recipe; choose another --out or delete that folder.\n"
    )
    assert contents(finished.folder, times=True) == before


def test_sets_alone_do_not_keep_a_corrected_recipe_out(finished: Finished, tmp_path: Path) -> None:
    """Stopped before anything was scored or trained, the folder holds nothing that another recipe could spoil."""
    folder = tmp_path / "run"
    assert killed(verbs, "claim", 1, "run", finished.recipe, "--out", folder) == KILLED
    assert (folder / "recipe.yaml").is_file()
    assert killed(verbs, "claim", 1, "run", finished.recipe, "train.steps=5", "--out", folder) == KILLED
    assert "steps: 5\n" in (folder / "recipe.yaml").read_text()


@pytest.mark.usefixtures("quick_report")
def test_attacking_a_merged_model_repeats_the_runs_scores(finished: Finished, tmp_path: Path) -> None:
    """And models scored one by one with one recipe end up in one table."""
    merged, out = finished.folder / "arms" / "unlearned" / "merged", tmp_path / "out"
    scored = ("--recipe", finished.recipe, "--out", out)
    assert adapter_mu("evaluate", "shapes-sd", *scored, "--name", "base")[0] == 0
    code, table, _ = adapter_mu("attack", merged, *scored, "--name", "unlearned", "--attack", "malicious")
    assert code == 0 and [line.split()[0] for line in table.splitlines() if " | " in line][2:] == ["base", "unlearned"]
    expected = [
        row for row in finished.rows if row["arm"] in ("base", "unlearned") and row["attack"] in ("none", "malicious")
    ]
    assert json.loads((out / "results.json").read_text())["rows"] == expected
    code, _, said = adapter_mu("evaluate", "shapes-sd", *scored, "--name", "unlearned")
    assert code == 2 and "scores of another model named 'unlearned'" in said


def test_merging_the_adapter_by_hand_makes_the_runs_merged_model(finished: Finished, tmp_path: Path) -> None:
    arm, out = finished.folder / "arms" / "meta-unlearned", tmp_path / "m"
    arguments = ("--base", "shapes-sd", "--out", out, "--dtype", "fp32")
    code, said, _ = adapter_mu("merge", arm / "adapter.safetensors", *arguments)
    assert code == 0 and str(out) in said
    assert fingerprint(load_model(str(out)).unet) == fingerprint(load_model(str(arm / "merged")).unet)


def test_the_report_can_be_made_again(finished: Finished) -> None:
    before = (finished.folder / "report.html").read_bytes()
    (finished.folder / "report.html").unlink()
    code, table, _ = adapter_mu("report", finished.folder)
    assert code == 0 and finished.table.startswith(table.rstrip("\n"))
    assert (finished.folder / "report.html").read_bytes() == before


def test_a_recipe_that_scores_nothing_still_trains(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ("run", finished.recipe, "attacks=null", "evaluate=null", "arms=null", "meta=null", "--out", folder)
    code, table, progress = adapter_mu(*command)
    assert code == 0 and "nothing was scored" in table
    assert (folder / "arms" / "unlearned" / "merged").is_dir() and "[2/2] unlearned: training" in progress
    assert adapter_mu(*command)[2] == "everything was done before\n"


def test_arms_side_by_side_train_the_same(finished: Finished, tmp_path: Path) -> None:
    """Processes take seconds to start, so nothing is scored here."""
    folder = tmp_path / "run"
    overrides = ("workers=2", "attacks=null", "evaluate=null")
    code, _, progress = adapter_mu("run", finished.recipe, *overrides, "--out", folder)
    assert code == 0 and progress.splitlines()[1] == "[2/2] 2 arms, 2 at a time"
    for arm in TRAINED:
        ours, theirs = (load_file(place / "arms" / arm / "adapter.safetensors") for place in (folder, finished.folder))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_killed_worker_is_one_sentence(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def submit(self, *_: object) -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(BrokenProcessPool())
            return future

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Pool)
    overrides = ("workers=2", "attacks=null", "evaluate=null")
    code, _, said = adapter_mu("run", finished.recipe, *overrides, "--out", tmp_path / "run")
    assert code == 2 and said.splitlines()[-1].startswith("adapter-mu: One of the workers was killed")


@pytest.mark.usefixtures("quick_report")
def test_sdxl_goes_the_same_way(tmp_path: Path) -> None:
    run = finish("sdxl", tmp_path, "arms=null")
    check_results(run, "meta-unlearned")
    merged = run.folder / "arms" / "meta-unlearned" / "merged"
    pipeline = StableDiffusionXLPipeline.from_pretrained(merged)
    assert fingerprint(pipeline.unet) != fingerprint(load_model("shapes-sdxl").unet)
    assert read_metadata(merged.with_name("adapter.safetensors"))["base"] == "shapes-sdxl"
