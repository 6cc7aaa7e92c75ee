"""Recipes: what is refused and in which words, overrides, `extends`, arms, and the shipped ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import RECIPE, tiny_recipe

from adapter_mu.cli import cp
from adapter_mu.errors import RecipeError
from adapter_mu.recipe import load_recipe, merged, parse, recipe_names, recipe_path

META = {"weight": 1.0, "attacker": {"lr": 0.1}}
ATTACK = {"data": {"prompts": ["a ring"], "images": 1}}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(merged(RECIPE, changes), "recipe tiny")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "place", "meant"),
    [
        ({"trian": {}}, "trian", "train"),
        ({"train": {"stps": 3}}, "train.stps", "steps"),
        ({"meta": META | {"attaker": {}}}, "meta.attaker", "attacker"),
        ({"meta": {"attacker": {"lrr": 1}}}, "meta.attacker.lrr", "lr"),
        ({"attacks": {"malicious": {"weight_decy": 1}}}, "attacks.malicious.weight_decy", "weight_decay"),
        ({"data": {"forget": {"promts": []}}}, "data.forget.promts", "prompts"),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_that_was_meant(changes: dict[str, Any], place: str, meant: str) -> None:
    whole = merged({"meta": META, "attacks": {"malicious": ATTACK}}, changes)
    assert refusal(whole) == f"recipe tiny: unknown key '{place}'; did you mean '{meant}'?"


def test_a_key_of_another_part_is_not_suggested() -> None:
    assert refusal({"train": {"guidance": 3}}).endswith("unknown key 'train.guidance'; remove it.")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"train": {"steps": "many"}}, "train.steps"),
        ({"train": {"steps": -1}}, "train.steps"),
        ({"train": {"lr": float("nan")}}, "train.lr"),
        ({"train": {"lr": float("inf")}}, "train.lr"),
        ({"train": 5}, "train"),
        ({"base": {"model": 3}}, "base.model"),
        ({"seed": 1.5}, "seed"),
        ({"data": {"forget": {"prompts": "a ring"}}}, "data.forget.prompts"),
        ({"data": {"forget": {"fill": {"size": "big"}}}}, "data.forget.fill.size"),
        ({"meta": META | {"bound": "tan"}}, "meta.bound"),
        ({"meta": META | {"order": "second"}}, "meta.order"),
        ({"meta": META | {"forget": float("inf")}}, "meta.forget"),
        ({"attacks": {"malicious": ATTACK | {"steps": 50}}}, "attacks.malicious.steps"),
        ({"arms": {"plain": 3}}, "arms.plain"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(changes: dict[str, Any], place: str) -> None:
    sentence = refusal(changes)
    assert sentence.startswith(f"recipe tiny: '{place}': ")
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 250


def test_what_is_missing_is_named() -> None:
    content = {key: value for key, value in RECIPE.items() if key != "method"}
    with pytest.raises(RecipeError, match=r"^recipe tiny: 'method' is missing; add it\.$"):
        parse(content, "recipe tiny")


def test_an_empty_prompt_list_is_refused() -> None:
    assert "'data.forget': the prompt list is empty; give `prompts` or a `file`" in refusal(
        {"data": {"forget": {"prompts": []}}}
    )


def test_backtracking_belongs_to_gradient_steps() -> None:
    attacker = {"lr": 0.1, "required_drop": 0.1}
    assert "required_drop" in refusal({"meta": {"weight": 1, "attacker": attacker | {"rule": "adamw"}}})
    assert tiny_recipe(meta={"weight": 1, "attacker": attacker | {"rule": "momentum"}}).meta


def test_orders() -> None:
    for order in ("exact", "first_order", 0, 2):
        recipe = tiny_recipe(meta=META | {"order": order})
        assert recipe.meta and recipe.meta.order == order


def test_overrides_are_yaml_at_dotted_keys(tmp_path: Path) -> None:
    file = str(write(tmp_path / "tiny.yaml", RECIPE))
    recipe = load_recipe(file, ["train.lr=1e-3", "data.forget.prompts=[x, y]", "meta.weight=2", "meta.attacker.lr=.1"])
    assert recipe.train.lr == 1e-3 and recipe.train.steps == RECIPE["train"]["steps"]
    assert recipe.data.forget.prompts == ["x", "y"]
    assert recipe.meta and recipe.meta.weight == 2
    assert load_recipe(file, ["description=a=b"]).description == "a=b"
    assert load_recipe(file, ["train.lr=1", "train.lr=2"]).train.lr == 2


@pytest.mark.parametrize("text", ["train.lr", "=3", "train.lr=[1", "train.lrr=3", "train=3"])
def test_a_bad_override_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"train|Override"):
        load_recipe(str(write(tmp_path / "tiny.yaml", RECIPE)), [text])


def test_merging_goes_key_by_key_and_replaces_everything_else() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 1}
    assert merged(below, {"a": {"c": [3]}, "d": None, "f": {"g": 1}}) == {
        "a": {"b": 1, "c": [3]},
        "d": None,
        "f": {"g": 1},
    }
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 1}


def test_extends_a_file_beside_it_or_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine" / "below.yaml", RECIPE)
    write(tmp_path / "mine" / "middle.yaml", {"extends": "below.yaml", "train": {"steps": 7}})
    top = write(tmp_path / "mine" / "top.yaml", {"extends": "../mine/middle.yaml", "seed": 5})
    monkeypatch.chdir(tmp_path)
    for path in (top, top.relative_to(tmp_path)):
        recipe = load_recipe(str(path))
        assert (recipe.seed, recipe.train.steps, recipe.train.lr) == (5, 7, RECIPE["train"]["lr"])
    assert load_recipe(str(write(tmp_path / "own.yaml", {"extends": "shapes/demo", "seed": 9}))).concept == "ring"


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "a.yaml", {"extends": "../sub/b.yaml"})
    write(tmp_path / "sub" / "b.yaml", {"extends": "../sub/a.yaml"})
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(str(tmp_path / "sub" / "a.yaml"))


@pytest.mark.parametrize("content", ["", "- a", "a: [", "a: \x00", b"\xff\xfe\xfa"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=r"bad\.yaml (is not valid YAML|must be a mapping)"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["shapes/nothing", "nothing.yaml", "."])
def test_a_recipe_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="adapter-mu ls"):
        load_recipe(name)


def test_an_arm_is_the_recipe_with_its_changes() -> None:
    recipe = tiny_recipe(meta=META, arms={"plain": {"meta": None}, "strong": {"meta": {"weight": 4}, "seed": 2}})
    plain, strong = recipe.arm("plain"), recipe.arm("strong")
    assert plain.meta is None and plain.train == recipe.train and plain.arms == {}
    assert strong.meta and strong.meta.weight == 4 and strong.meta.attacker == recipe.meta.attacker  # type: ignore[union-attr]
    assert strong.seed == 2 and recipe.seed == 0


def test_an_arm_keeps_the_options_of_the_method() -> None:
    recipe = tiny_recipe(method={"name": "esd", "eta": 2.0}, arms={"weak": {"method": {"eta": 1.0}}})
    assert recipe.method.options == {"eta": 2.0}
    assert recipe.arm("weak").method.options == {"eta": 1.0}


def test_an_arm_with_another_method_does_not_inherit_the_options_of_the_old_one(tmp_path: Path) -> None:
    method = {"name": "esd", "eta": 2.0}
    arms = {"other": {"method": {"name": "sdd", "decay": 0.9}}, "same": {"method": {"name": "esd", "guidance": 1.0}}}
    recipe = tiny_recipe(method=method, arms=arms)
    assert recipe.arm("other").method.options == {"decay": 0.9}
    assert recipe.arm("same").method.options == {"eta": 2.0, "guidance": 1.0}
    file = str(write(tmp_path / "tiny.yaml", RECIPE | {"method": method}))
    assert load_recipe(file, ["method.decay=0.5", "method.name=sdd"]).method.options == {"decay": 0.5}
    above = write(tmp_path / "above.yaml", {"extends": "tiny.yaml", "method": {"name": "sdd"}})
    assert load_recipe(str(above)).method.options == {}


def test_every_arm_is_checked_when_the_recipe_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", RECIPE | {"arms": {"plain": {"train": {"stps": 1}}}})
    with pytest.raises(RecipeError, match=r"^arm plain: unknown key 'train.stps'; did you mean 'steps'\?$"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_says_what_it_is_and_can_be_copied(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(name)
    assert recipe.description and all(recipe.arm(arm) for arm in recipe.arms)
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "mine" / "recipe.yaml"
    cp.run(argparse.Namespace(recipe=name, to=str(copy)))
    assert copy.read_bytes() == recipe_path(name).read_bytes()
    assert load_recipe(str(copy)) == recipe
    with pytest.raises(RecipeError, match="exists already"):
        cp.run(argparse.Namespace(recipe=name, to=str(copy)))
