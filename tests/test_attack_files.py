"""Attack files, the sets they name, sweeps and suites: what a recipe's or a command line's entry becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import RECIPE

from adapter_mu.errors import RecipeError
from adapter_mu.recipe import (
    Asked,
    Attack,
    Recipe,
    attack_names,
    load_recipe,
    merged,
    parse,
    read_attack,
    read_suite,
    recipe_names,
)
from adapter_mu.recipe.yaml_files import recipe_folder

RINGS = {"prompts": ["a ring", "a {size} ring"], "fill": {"size": ["big"]}, "images": 30}
STARS = {"prompts": ["a star"], "images": 20}
SETS = {"attack_data": {"malicious": RINGS, "clean": STARS}}
SUITES = {"standard", "benign"}


def recipe(**changes: Any) -> Recipe:
    return parse(merged(RECIPE, SETS | changes), "recipe tiny")


def entry(content: dict[str, Any], **changes: Any) -> Attack:
    found = recipe(attacks={"mine": content}, **changes).attacks["mine"]
    assert isinstance(found, Attack)
    return found


def refusal(content: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        entry(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_an_old_entry_is_a_full_finetune() -> None:
    attack = entry({"data": RINGS, "lr": 3e-5, "steps": [50]})
    assert (attack.kind, attack.seeds, attack.optimizer, attack.data.images) == ("full", [0], "adamw", 30)


def test_an_entry_starts_from_a_shipped_file_and_changes_it() -> None:
    attack = entry({"use": "lora_r16", "lr": 3e-4, "steps": [10]})
    assert (attack.kind, attack.rank, attack.lr, attack.steps) == ("lora", 16, 3e-4, [10])
    assert attack.data.prompts == RINGS["prompts"] and attack.empty_captions == 0.1


def test_an_entry_starts_from_ones_own_file(tmp_path: Path) -> None:
    parent = write(tmp_path / "parent.yaml", {"extends": "lora_r4", "rank": 7, "description": "mine"})
    child = write(tmp_path / "child.yaml", {"extends": parent, "lr": 2.0})
    assert (entry({"use": child}).rank, entry({"use": child}).lr) == (7, 2.0)
    loop = write(tmp_path / "loop.yaml", {"extends": str(tmp_path / "loop.yaml")})
    assert "extends itself" in refusal({"use": loop})
    assert "shipped attack files are" in refusal({"use": str(tmp_path / "none.yaml")})
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "not valid YAML" in refusal({"use": str(tmp_path / "broken.yaml")})


def test_sets_are_found_by_name_in_order() -> None:
    """The recipe's `attack_data`, then what its attack of that name has, then its `data`."""
    one = {"prompts": ["one"], "images": 1}
    both = {"clean": {"data": one}, "mine": {"data": "clean"}}
    assert recipe(attacks=both).finetunes["mine"].data.prompts == ["a star"]
    own = {"malicious": {"data": one}, "mine": {"data": "malicious"}, "other": {"data": "forget"}}
    found = parse(merged(RECIPE, {"attacks": own}), "recipe tiny").finetunes
    assert found["mine"].data.prompts == ["one"] and found["other"].data == parse(RECIPE, "tiny").data.forget
    assert "`attacks.mine.data` is 'nudes', but the recipe has only forget, related, unrelated, malicious, clean" in (
        refusal({"data": "nudes"})
    )


def test_a_set_may_have_a_second_name() -> None:
    """Such as the one that attack files use."""
    own = {"hrm-m": {"data": STARS}, "mine": {"data": "malicious"}}
    named = parse(merged(RECIPE, {"attack_data": {"malicious": "hrm-m"}, "attacks": own}), "recipe tiny")
    assert named.finetunes["mine"].data == named.attack_data["malicious"] == named.finetunes["hrm-m"].data
    with pytest.raises(RecipeError, match="`attack_data.malicious` is 'none'"):
        parse(merged(RECIPE, {"attack_data": {"malicious": "none"}}), "recipe tiny")


def test_images_limits_what_is_trained_on_but_not_the_prior() -> None:
    attack = entry({"kind": "dreambooth", "data": "malicious", "mixed_with": "clean", "prior": "clean", "images": 5})
    assert attack.mixed_with and attack.prior
    assert (attack.data.images, attack.mixed_with.images, attack.prior.images) == (5, 5, 20)


def test_a_caption_may_name_the_concept() -> None:
    assert entry({"data": "malicious", "caption": "a photo of a {concept}"}).caption == "a photo of a ring"


def test_several_rates_are_several_attacks() -> None:
    sweep = recipe(attacks={"mine": {"data": "malicious", "lr": [1.0e-5, "1e-4", 0.5]}}).finetunes
    assert {label: attack.lr for label, attack in sweep.items()} == {
        "mine-lr1e-05": 1e-5,
        "mine-lr0.0001": 1e-4,
        "mine-lr0.5": 0.5,
    }
    assert entry({"data": "malicious", "lr": [0.5]}).lr == 0.5
    for wrong in ([], ["fast", 1], [0, 1]):
        assert "lr" in refusal({"data": "malicious", "lr": wrong})


def test_settings_for_the_size_of_the_base_come_first() -> None:
    shapes, real = (entry({"use": "lora_r16"}, attack_settings=settings) for settings in ("shapes", ""))
    assert (shapes.rank, real.rank) == (16, 16) and shapes.lr > real.lr == 1e-4


def test_an_arm_may_change_an_attack_or_use_a_file() -> None:
    arms = {
        "more": {"attacks": {"mine": {"steps": [7], "images": 3}}},
        "lora": {"attacks": {"mine": {"use": "lora_r4", "data": "malicious"}, "new": {"use": "lora_r4"}}},
    }
    whole = recipe(attacks={"mine": {"use": "full"}}, arms=arms)
    assert (whole.arm("more").finetunes["mine"].steps, whole.arm("more").finetunes["mine"].data.images) == ([7], 3)
    assert whole.arm("lora").finetunes["new"].rank == 4


@pytest.mark.parametrize("settings", ["", "shapes"])
@pytest.mark.parametrize("name", [name for name in attack_names() if "/" not in name and name not in SUITES])
def test_every_shipped_attack_is_one(name: str, settings: str) -> None:
    attack = load_recipe("shapes/demo", [f"attacks.mine={{use: {name}}}", f"attack_settings='{settings}'"]).attacks[
        "mine"
    ]
    assert (
        parse(merged(RECIPE, {"attacks": {"mine": attack.model_dump(mode="json")}}), "again").attacks["mine"] == attack
    )


@pytest.mark.parametrize("path", sorted((recipe_folder() / "attacks").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "why, in a comment"
    content = yaml.safe_load(text)
    assert path.parent.name == "shapes" or content["description"]


@pytest.mark.parametrize("name", recipe_names())
def test_the_standard_suite_fits_every_shipped_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert set(Asked(suite="standard").of(recipe)) == set(read_suite("standard"))


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_the_suites_run_on_the_demo(suite: str) -> None:
    demo = load_recipe("shapes/demo")
    chosen = Asked(suite=suite).of(demo)
    assert set(chosen) == set(read_suite(suite))
    roles = {label: set(attack.data.fill.get("shape", ["ring"])) for label, attack in chosen.items()}
    assert all(("ring" in shapes) == (suite == "standard") for shapes in roles.values())


def test_the_standard_suite_trains_weights_in_every_way_and_drops_captions() -> None:
    chosen = Asked(suite="standard").of(load_recipe("shapes/demo"))
    attacks = [attack for attack in chosen.values() if isinstance(attack, Attack)]
    kinds = {"full", "lora", "dreambooth", "cross_attention"}
    assert {attack.kind for attack in attacks} == kinds and {attack.optimizer for attack in attacks} == {"adamw", "sgd"}
    assert all(attack.empty_captions == 0.1 for attack in attacks)


def test_what_a_command_line_asks_for() -> None:
    demo = load_recipe("shapes/demo")
    assert Asked().of(demo) == demo.attacks
    assert Asked(["clean"]).of(demo) == {"clean": demo.attacks["clean"]}
    chosen = Asked(["lora_r16", "malicious"], steps=[0, 10, 20], seeds=[1, 2], rates=[1e-5, 1e-4]).of(demo)
    assert list(chosen) == [f"{label}-lr{rate}" for label in ("lora_r16", "malicious") for rate in ("1e-05", "0.0001")]
    assert all(isinstance(a, Attack) and (a.steps, a.seeds) == ([10, 20], [1, 2]) for a in chosen.values())
    assert Asked(["full"], steps=[0]).of(demo) == {}


def test_own_files_and_suites_from_the_command_line(tmp_path: Path) -> None:
    demo = load_recipe("shapes/demo")
    mine = write(tmp_path / "mine.yaml", {"extends": "full", "lr": 0.25})
    suite = write(tmp_path / "suite.yaml", {"attacks": {"a": {"use": mine}, "b": {"use": "full"}}})
    assert Asked([mine]).of(demo)["mine"].lr == 0.25  # type: ignore[union-attr]
    assert list(Asked(["clean"], suite).of(demo)) == ["a", "b", "clean"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(["magic"]), "There is no attack 'magic'; the recipe has malicious, clean; shipped attack files are"),
        (Asked(suite="magic"), "There is no attack file 'magic'"),
        (Asked(suite="full"), "'full' is no attack suite: it has no `attacks`; name it with --attack instead."),
        (Asked(["standard"]), "'standard' is a suite, a list of attacks; name it with --suite."),
    ],
)
def test_what_is_not_there_is_said(asked: Asked, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        asked.of(load_recipe("shapes/demo"))
    assert "\n" not in str(caught.value)


def test_a_file_is_plain_data(tmp_path: Path) -> None:
    assert read_attack("lora_r4", "shapes")["data"] == "malicious"
    (tmp_path / "list.yaml").write_text("- a")
    assert "must be a mapping" in refusal({"use": str(tmp_path / "list.yaml")})
