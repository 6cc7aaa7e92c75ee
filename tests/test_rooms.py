"""The repository keeps its own rules: imports point down the table of rooms, recipes parse, README's commands exist."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "adapter_mu"

# The table of rooms, highest first. It differs from the first design in three places: `data` draws its sets with
# `models`, `models` calls a UNet with parameters through `params`, and `plan` goes through the code of `stages` and
# `train` without weights: each is below the room that needs it.
ROOMS = (
    "cli",
    "reproduce",
    "run",
    "ship",
    "plan",
    "stages",
    "build_shapes",
    "report",
    "evaluate",
    "attack",
    "export",
    "train",
    "simulate",
    "methods",
    "meta",
    "data",
    "models",
    "params",
    "shapes",
    "live",
    "recipe",
    "registry",
    "progress",
    "errors",
)
HEAVY = ("torch", "diffusers", "transformers", "peft", "matplotlib", "pydantic")
# A fenced line may start with a prompt sign and the environment's folder.
COMMAND = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?(adapter-mu .*)$", re.M)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module a source file imports anywhere, TYPE_CHECKING blocks and functions included, as absolute names."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from adapter_mu import recipe` imports a room; `from adapter_mu.recipe import Recipe` a name in one.
            yield from (f"{origin}.{alias.name}" for alias in node.names) if origin == "adapter_mu" else (origin,)


def room(module: str) -> str | None:
    """The room of a module; None for what is not ours and for the package's own names."""
    parts = module.split(".")
    return parts[1] if parts[0] == "adapter_mu" and len(parts) > 1 and not parts[1].startswith("__") else None


def upward(source: str, module: str, is_package: bool) -> list[str]:
    here = room(module)
    if here is None:
        return [name for name in imports(source, module, is_package) if room(name)]
    others = {name: found for name in imports(source, module, is_package) if (found := room(name))}
    return [name for name, found in others.items() if ROOMS.index(found) < ROOMS.index(here)]


def test_every_module_has_a_room() -> None:
    found = {room(name_of(path)) for path in modules()} - {None}
    assert found <= set(ROOMS), f"give {sorted(found - set(ROOMS))} a place in the table of rooms"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    wrong = upward(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
    assert not wrong, f"{name_of(path)} imports {wrong} from a higher room"


@pytest.mark.parametrize(
    "source",
    [
        "import adapter_mu.train",
        "from adapter_mu.train import Trainer",
        "from adapter_mu import train",
        "from ..train import Trainer",
        "from .. import train",
        "if TYPE_CHECKING:\n    from adapter_mu.train import Trainer",
        "def late():\n    import adapter_mu.train",
    ],
)
def test_an_upward_import_is_seen_however_written(source: str) -> None:
    assert upward(source, "adapter_mu.params.files", False)
    assert not upward(source.replace("train", "errors"), "adapter_mu.params.files", False)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("meta/*.py")), ids=name_of)
def test_the_mathematics_needs_only_torch(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path.read_text("utf-8"), name_of(path), path.name == "__init__.py")}
    assert found - set(sys.stdlib_module_names) <= {"torch", "adapter_mu"}


@pytest.mark.parametrize(
    "path", [p for p in sorted(ROOT.glob("recipes/**/*.yaml")) if "attacks" not in p.parts], ids=lambda p: p.stem
)
def test_every_recipe_parses(path: Path) -> None:
    from adapter_mu.recipe import load_recipe

    by_name = load_recipe(path.relative_to(ROOT / "recipes").with_suffix("").as_posix())
    assert load_recipe(str(path)) == by_name


def test_recipes_are_yaml_and_nothing_else() -> None:
    assert {path.suffix for path in ROOT.glob("recipes/**/*") if path.is_file()} <= {".yaml", ".txt", ".md"}


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def fenced() -> str:
    """README's code blocks, continued lines joined."""
    return "\n".join(re.findall(r"```\w*\n(.*?)```", readme(), re.S)).replace("\\\n", " ")


def parser() -> argparse.ArgumentParser:
    from adapter_mu.cli.main import build_parser

    return build_parser()


def verbs() -> set[str]:
    actions = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {verb for action in actions for verb in action.choices}


def test_readmes_make_targets_exist() -> None:
    named = set(re.findall(r"^\s*(?:\$ )?make ([a-z]+)", fenced(), re.M)) | set(re.findall(r"`make ([a-z]+)", readme()))
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {"demo", "test"} <= named <= rules


def test_readmes_verbs_exist() -> None:
    named = set(re.findall(r"adapter-mu ([a-z]+)", fenced())) | set(re.findall(r"`adapter-mu ([a-z]+)", readme()))
    assert named and named <= verbs()


def test_readmes_commands_parse() -> None:
    for line in COMMAND.findall(fenced()):
        words = shlex.split(line, comments=True)[1:]
        if words[-1] in ("--help", "--version"):
            continue
        try:
            parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"README shows a command that is refused: {line}")


def test_help_loads_nothing_heavy() -> None:
    """What makes `adapter-mu --help` answer at once: counted by modules, because a clock fails on a busy machine."""
    code = (
        "import sys; from adapter_mu.cli.main import build_parser; build_parser().format_help();"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_continuous_integration_runs_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.search(r"^make test\b", script.read_text(encoding="utf-8"), re.M)
