"""Every mistake ends in one sentence and exit code 2 before any work; every verb does what a newcomer would type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from shutil import copytree

import diffusers  # noqa: F401  (says on its first import that torchvision is missing; not the verbs' doing)
import pytest
from PIL import Image

import adapter_mu.run as verbs
from adapter_mu.cli.main import VERBS, main
from adapter_mu.recipe import load_recipe, recipe_names

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def adapter_mu(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Exit code, stdout and stderr of a command line, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in this file may get as far as drawing sets, training or scoring."""

    def work(*_: object, **__: object) -> None:
        pytest.fail("work began")

    monkeypatch.setattr(verbs, "open_run", work)


def one_sentence(result: tuple[int, str, str]) -> str:
    """The sentence of a mistake: exit code 2, nothing on stdout, one line on stderr."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("adapter-mu: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


WRONG = {
    "unknown key": (["trane.steps=3"], "unknown key 'trane'; did you mean 'train'?"),
    "unknown nested key": (["train.stepz=3"], "unknown key 'train.stepz'; did you mean 'steps'?"),
    "no key=value": (["steps"], "must look like key=value"),
    "wrong type": (["train.steps=many"], "'train.steps'"),
    "missing prompt file": (["data.forget.file=none.txt"], "none.txt does not exist"),
    "empty prompt list": (["data.forget.prompts=[]"], "prompt list is empty"),
    "empty list of words": (["data.forget.fill.colour=[]"], "empty list"),
    "placeholder without words": (["data.forget.prompts=['a {thing}']"], "{thing}"),
    "empty subset": (["adapter.subset=nothing_here"], "selects no parameter"),
    "subset without layers": (["adapter.kind=lora", "adapter.subset=norm1"], "no Linear or Conv2d weight"),
    "pickle": (["base.model=pickled.ckpt"], "is a pickle"),
    "pickle in a folder": (["base.model=altered"], "pickle"),
    "another architecture": (["base.model=flux"], "FluxPipeline"),
    "no such model": (["base.model=nowhere/at/all"], "nothing to load at 'nowhere/at/all'"),
    "no GPU": (["base.device=cuda"], "sees no GPU"),
    "unknown method": (["method.name=esdd"], "no method 'esdd'"),
    "unknown option of a method": (["method.etta=1"], "'method.etta'"),
    "unknown detector": (["evaluate.detector=eyes"], "no detector 'eyes'"),
    "unknown concept": (["concept=banana"], "does not know 'banana'"),
    "detector of another size": (["base.model=altered"], "reads 32x32 pictures"),
    "attack without steps": (["attacks.clean.steps=[]"], "`attacks.clean.steps`"),
    "attack at step 0": (["attacks.clean.steps=[0,50]"], "`attacks.clean.steps`"),
    "attacks without scores": (["evaluate=null"], "need an `evaluate` part"),
    "order below zero": (["meta.order=-1"], "order"),
    "arm called base": (["arms.base.seed=1"], "'base' cannot name this arm"),
    "arm that is a path": (["arms={'../up': {}}"], "'../up' cannot name this arm"),
    "attack called none": (["attacks.none={data: {prompts: [a], images: 1}}"], "'none' cannot name this attack"),
    "arm with another base": (["arms.other.base.model=shapes-sdxl"], "changes `base`, which all arms share"),
    "mistake in an arm": (["arms.other.train.lr=-1"], "arm other"),
}


def pickled(unet: Path) -> None:
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def bigger(unet: Path) -> None:
    """Say that it draws 64x64 pictures."""
    config = unet / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 8', '"sample_size": 16'))


ALTERED = {"pickle in a folder": pickled, "detector of another size": bigger}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_one_sentence_before_any_work(name: str, adapter_mu: Command, tmp_path: Path) -> None:
    (tmp_path / "pickled.ckpt").write_bytes(b"PK")
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    if name in ALTERED:
        copytree(str(files("adapter_mu.shapes") / "checkpoints" / "shapes-sd"), tmp_path / "altered")
        ALTERED[name](tmp_path / "altered" / "unet")
    overrides, said = WRONG[name]
    result = adapter_mu("run", "shapes/demo", "--out", "out", *overrides)
    assert said in one_sentence(result)
    assert not (tmp_path / "out").exists()
    assert one_sentence(adapter_mu("validate", "shapes/demo", *overrides)) == result[2]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("none", "no recipe 'none'"),
        ("list.yaml", "must be a mapping"),
        ("broken.yaml", "not valid YAML"),
        ("loop.yaml", "extends itself"),
        ("bare.yaml", "is missing"),
    ],
)
def test_a_wrong_recipe_file_is_one_sentence(recipe: str, said: str, adapter_mu: Command, tmp_path: Path) -> None:
    for name, text in {"list": "- a", "broken": "a: [", "loop": "extends: loop.yaml", "bare": "name: x"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert said in one_sentence(adapter_mu("run", recipe, "--out", "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere/out"])
def test_a_folder_that_cannot_be_written_is_one_sentence(out: str, adapter_mu: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "choose another --out" in one_sentence(adapter_mu("run", "shapes/demo", "--out", out))
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_holds_another_recipes_run_is_refused(adapter_mu: Command, tmp_path: Path) -> None:
    (tmp_path / "out" / "arms").mkdir(parents=True)
    (tmp_path / "out" / "recipe.yaml").write_text("name: other\n")
    assert "another recipe" in one_sentence(adapter_mu("run", "shapes/demo", "--out", "out"))
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "name: other\n"


SCORED = ("--recipe", "shapes/demo", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("attack", "shapes-sd", *SCORED, "--attack", "magic"),
            "There is no attack 'magic'; the recipe has malicious, clean;",
        ),
        (("attack", "shapes-sdxl", *SCORED), "is sdxl, but the recipe's base is sd"),
        (("attack", "nowhere", *SCORED), "nothing to load"),
        (("attack", "shapes-sd", *SCORED, "--name", "../up"), "'../up' cannot name this model"),
        (("evaluate", "shapes-sd", *SCORED, "evaluate=null", "attacks=null"), "no `evaluate` part"),
        (("evaluate", "shapes-sd", *SCORED, "evaluate.detector=eyes"), "no detector 'eyes'"),
        (("merge", "none.safetensors", "--base", "shapes-sd", "--out", "out"), "none.safetensors"),
        (("merge", "none.ckpt", "--base", "shapes-sd", "--out", "out"), "none.ckpt"),
        (("sample", "nowhere", "--prompt", "a ring", "--out", "out"), "nothing to load"),
        (("report", "out"), "out/results.json"),
        (("cp", "none", "out"), "no recipe 'none'"),
        (("validate", "none"), "no recipe 'none'"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-1:]) if isinstance(value, tuple) else "",
)
def test_each_verb_says_what_is_wrong(arguments: tuple[str, ...], said: str, adapter_mu: Command) -> None:
    assert said in one_sentence(adapter_mu(*arguments))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "VERB"),
        (("fly",), "invalid choice: 'fly'"),
        (("run",), "recipe"),
        (("run", "shapes/demo", "--outt", "x"), "--outt"),
        (("report", "folder", "--steps", "1"), "--steps"),
        (("sample", "shapes-sd", "--prompt", "a", "--images", "0"), "--images"),
        (("sample", "shapes-sd", "--prompt", "a", "--steps", "-1"), "--steps"),
    ],
)
def test_words_that_no_verb_knows_are_refused(arguments: tuple[str, ...], said: str, adapter_mu: Command) -> None:
    code, out, err = adapter_mu(*arguments)
    assert (code, out) == (2, "") and said in err.splitlines()[-1]


@pytest.mark.parametrize("place", ["before", "after", "around"])
def test_overrides_may_stand_anywhere(place: str, adapter_mu: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(verbs, "everything", lambda recipe, folder: seen.append((recipe, folder)) or "done")
    words = {
        "before": ("train.steps=7", "seed=3", "--out", "x"),
        "after": ("--out", "x", "train.steps=7", "seed=3"),
        "around": ("train.steps=7", "--out", "x", "seed=3"),
    }[place]
    assert adapter_mu("run", "shapes/demo", *words) == (0, "done\n", "")
    assert seen == [(load_recipe("shapes/demo", ["train.steps=7", "seed=3"]), Path("x"))]


def test_ctrl_c_is_one_sentence(adapter_mu: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "everything", stopped)
    code, out, err = adapter_mu("run", "shapes/demo")
    assert (code, out) == (130, "") and err == "adapter-mu: stopped; the same command continues from what is saved.\n"


def test_a_bug_is_not_dressed_up_as_a_mistake(adapter_mu: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise OSError("something that has no file")

    monkeypatch.setattr(verbs, "everything", bug)
    with pytest.raises(OSError, match="no file"):
        adapter_mu("run", "shapes/demo")


def test_ls_names_every_recipe(adapter_mu: Command) -> None:
    code, out, err = adapter_mu("ls")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == recipe_names()
    assert all(len(line.split()) > 1 for line in out.splitlines()), "each says what it is for"


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f'"{sys.executable}" -m adapter_mu.cli.main ls | head -n 1'
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (result.returncode, len(result.stdout.splitlines()), result.stderr) == (0, 1, "")


def test_cp_copies_a_recipe_that_runs_the_same(adapter_mu: Command, tmp_path: Path) -> None:
    assert adapter_mu("cp", "shapes/demo", "mine/own.yaml") == (0, "mine/own.yaml\n", "")
    assert load_recipe("mine/own.yaml") == load_recipe("shapes/demo")
    assert "#" in (tmp_path / "mine" / "own.yaml").read_text(), "comments come along"
    assert "exists already" in one_sentence(adapter_mu("cp", "shapes/plain", "mine/own.yaml"))
    assert adapter_mu("cp", "shapes/demo", "mine") == (0, "mine/demo.yaml\n", "")
    assert adapter_mu("cp", "shapes/demo", "new/") == (0, "new/demo.yaml\n", "")
    (tmp_path / "file").write_text("")
    assert "file" in one_sentence(adapter_mu("cp", "shapes/demo", "file/below.yaml"))


def test_validate_says_what_each_arm_trains(adapter_mu: Command, tmp_path: Path) -> None:
    code, out, err = adapter_mu("validate", "shapes/demo", "adapter.subset=cross_attention_kv")
    assert (code, err) == (0, "") and list(tmp_path.iterdir()) == []
    assert [line.split(": ")[:2] for line in out.splitlines()] == [
        [arm, "cross_attention_kv"] for arm in load_recipe("shapes/demo").arms
    ]


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-sdxl"])
def test_sample_draws_a_picture_a_prompt(name: str, adapter_mu: Command) -> None:
    arguments = ("--prompt", "a red ring", "--prompt", "a blue star", "--images", "2", "--steps", "2")
    code, out, err = adapter_mu("sample", name, *arguments, "--guidance", "4", "--out", "drawn")
    assert (code, err) == (0, "")
    paths = [Path(line) for line in out.splitlines()]
    assert paths == [Path("drawn") / f"000{i}.png" for i in range(4)]
    assert {Image.open(path).size for path in paths} == {(32, 32)}
    assert len({path.read_bytes() for path in paths}) == 4


def test_help_is_there_for_every_verb_and_loads_nothing_heavy(adapter_mu: Command) -> None:
    code, out, _ = adapter_mu("--help")
    assert code == 0 and all(f"\n    {verb.__name__.rpartition('.')[2]}" in out for verb in VERBS)
    for verb in VERBS:
        name = verb.__name__.rpartition(".")[2]
        assert (verb.__doc__ or "").split("\n")[0].rstrip(".")[:40] in adapter_mu(name, "--help")[1]
    heavy = "import sys; from adapter_mu.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    heavy += "print([n for n in ('torch', 'numpy', 'diffusers', 'pydantic', 'yaml', 'tqdm') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistake_in_a_process_of_its_own_is_one_line_too(tmp_path: Path) -> None:
    """No library speaks up on its import, and the exit code reaches the shell."""
    code = "import sys; from adapter_mu.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "run", "shapes/demo", "--out", str(tmp_path / "out"), "adapter.subset=none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "selects no parameter" in one_sentence((done.returncode, done.stdout, done.stderr))
    assert not (tmp_path / "out").exists()
