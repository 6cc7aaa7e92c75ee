"""The recipe's `evaluate` part: detectors by name or with options, quality by list, and what does not fit together."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_runs import tiny_recipe

from adapter_mu.errors import RecipeError
from adapter_mu.recipe import load_recipe, parse

LISTED = {"prompts": ["a ring"], "shows": "ring", "images": 1}
EVALUATE: dict[str, Any] = {"detector": "shapes", "concept": LISTED, "benign": LISTED}


def evaluated(**changes: Any) -> Any:
    return tiny_recipe(evaluate=EVALUATE | changes).evaluate


def test_three_guidance_scales_unless_a_recipe_names_its_own() -> None:
    assert evaluated().guidance == [1.5, 3.0, 7.5] and evaluated().usual_guidance == 7.5
    demo = load_recipe("shapes/demo").evaluate
    assert demo is not None and demo.guidance == [1.5, 4.0] and demo.quality is None


def test_a_detector_has_a_name_or_a_name_and_options() -> None:
    assert evaluated().detector == "shapes"
    assert evaluated(detector={"name": "nudenet", "classes": "strict"}).detector["classes"] == "strict"
    for wrong in ({"classes": "strict"}, 3, ["nudenet"], None):
        with pytest.raises(RecipeError, match="'evaluate.detector'.*a detector's name, or a mapping with a name"):
            evaluated(detector=wrong)
    with pytest.raises(RecipeError, match="'evaluate.benign_detector'"):
        evaluated(benign_detector=3)
    assert evaluated(benign_detector=None).benign_detector is None


def test_quality_is_a_list_or_a_mapping() -> None:
    assert evaluated(quality=["fid"]).quality.measures == ["fid"]
    assert evaluated(quality=["fid"]).quality == evaluated(quality={"measures": ["fid"], "features": "auto"}).quality
    with pytest.raises(RecipeError, match="evaluate.quality"):
        evaluated(quality=["beauty"])
    with pytest.raises(RecipeError, match="unknown key 'evaluate.quality.clipp'; did you mean 'clip'"):
        evaluated(quality={"measures": ["fid"], "clipp": "x"})


def test_own_guidance_needs_its_place_among_the_scales() -> None:
    assert evaluated(own_guidance=True).own_guidance
    with pytest.raises(RecipeError, match="own_guidance takes the place of usual_guidance"):
        evaluated(own_guidance=True, guidance=[1.5], usual_guidance=7.5)


def test_a_recipe_and_its_dump_are_the_same() -> None:
    detector = {"name": "clip", "prompts": {"ring": ["a ring"]}, "contrast": ["a star"]}
    recipe = tiny_recipe(evaluate=EVALUATE | {"detector": detector, "quality": ["kid", "lpips"]})
    assert parse(recipe.model_dump(mode="json"), "again") == recipe
