"""Quality: FID and KID against their formulas, agreement against captions, and what is missing named beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import tiny_clip
from torch import Tensor

import adapter_mu.evaluate.quality.features as features_module
import adapter_mu.evaluate.quality.perceptual as perceptual_module
from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.quality import check_quality, quality
from adapter_mu.evaluate.quality.agreement import agreement, captions_read
from adapter_mu.evaluate.quality.distances import fid, kid
from adapter_mu.evaluate.quality.features import feature_network
from adapter_mu.evaluate.quality.perceptual import shapes_distance
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.recipe import Evaluate, Prompts, load_recipe
from adapter_mu.shapes.detector import load_shapes_detector, read
from adapter_mu.shapes.draw import draw
from adapter_mu.shapes.vocabulary import Scene, caption, random_scenes
from adapter_mu.stages import Run, quality_done, quality_items, quality_of_arm

BENIGN = Prompts(prompts=["a red {s}"], fill={"s": ["star", "square"]}, shows="{s}", images=6, seed=2)
RING = Prompts(prompts=["a ring"], shows="ring", images=2)


def wanting(quality: Any, **changes: Any) -> Evaluate:
    parts = {"detector": "shapes", "concept": RING, "benign": BENIGN, "guidance": [4.0], "usual_guidance": 4.0}
    return Evaluate(**{**parts, "steps": 2, "batch_size": 4, "quality": quality, **changes})


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model("shapes-sd")


@pytest.fixture(scope="module")
def worse() -> LoadedModel:
    model = load_model("shapes-sd")
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter *= 0.5
    return model


def normal(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_fid_is_frechets_distance() -> None:
    one, other = normal(400, 0), 1.5 * normal(300, 1, shift=0.3)
    a, b = np.cov(one.numpy(), rowvar=False), np.cov(other.numpy(), rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root)).sum()
    gap = float((one.mean(0) - other.mean(0)).square().sum())
    assert fid(one, other) == pytest.approx(gap + np.trace(a) + np.trace(b) - 2 * cross, rel=1e-6)
    assert fid(one, one) == pytest.approx(0, abs=1e-8)


def test_kid_is_the_unbiased_cubic_kernel_distance() -> None:
    """Its mean over subsets is an estimate of the distance of the whole sets, which is computed here by hand."""
    one, other = normal(120, 0), normal(100, 1, shift=0.8)
    kernel = lambda x, y: (x @ y.T / 5 + 1) ** 3  # noqa: E731
    within = [(kernel(x, x).sum() - kernel(x, x).diagonal().sum()) / (len(x) * (len(x) - 1)) for x in (one, other)]
    expected = float(sum(within) - 2 * kernel(one, other).mean())
    value, low, high = kid(one, other)
    assert value == pytest.approx(expected, rel=0.15) and low < value < high
    assert kid(one, other) == (value, low, high) != kid(one, other, seed=1)


def test_kid_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kid(normal(20, 0), normal(20, 1))
    assert torch.equal(torch.rand(3), expected)


def test_captions_are_read_word_by_word() -> None:
    seen = {"shape": [0, 0, 6, 1], "colour": [0, 1, 2, 0], "background": [0, 1, 0, 0], "texture": [1, 0, 1, 0]}
    prompts = ["a small striped red ring on a black background", "a red ring", "a big circle", "nothing to read"]
    shares = captions_read({name: torch.tensor(values) for name, values in seen.items()}, prompts)
    assert shares[:3].tolist() == [100, 50, 0] and shares[3].isnan()


def test_drawings_agree_with_their_captions_and_not_with_others() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = random_scenes(80, generator)
    pictures, measure = draw(scenes, generator), agreement(wanting(["clip_score"]))
    assert measure.of(pictures, [caption(scene) for scene in scenes]).mean() > 97
    others = [Scene(*((v + 1) % 2 for v in (s.shape, s.colour, s.background, s.texture, s.size))) for s in scenes]
    assert measure.of(pictures, [caption(scene) for scene in others]).mean() < 60
    assert "not CLIP" in measure.convention


def test_the_perceptual_distance_is_lpips_formula_with_equal_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = draw(random_scenes(6, generator), generator)
    one, other = pictures[:3], pictures[3:]
    network = load_shapes_detector()
    expected, a, b = torch.zeros(3), one * 2 - 1, other * 2 - 1
    for block in network.body[:4]:
        a, b = block(a), block(b)
        unit_a, unit_b = (x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12) for x in (a, b))
        expected += (unit_a - unit_b).square().sum(1).mean((1, 2)) / 4
    assert torch.allclose(shapes_distance(network.body, one, other), expected, atol=1e-6)
    assert shapes_distance(network.body, one, one).abs().max() == 0


def test_all_measures_of_a_model_and_of_the_base_itself(base: LoadedModel, worse: LoadedModel, tmp_path: Path) -> None:
    evaluate = wanting(["clip_score", "fid", "kid", "lpips"])
    check_quality(evaluate)
    items = quality(worse, base, evaluate, arm="unlearned", cache=tmp_path)
    assert [item["metric"] for item in items] == ["clip_score", "fid", "kid", "lpips"]
    keys = {"arm", "attack", "step", "metric", "value", "low", "high", "images", "convention"}
    for item in items:
        assert set(item) == keys and (item["arm"], item["attack"], item["step"]) == ("unlearned", "none", 0)
        assert item["images"] == 6 and item["convention"]
        assert item["metric"] == "fid" or item["low"] <= item["value"] <= item["high"]
    assert len(list(tmp_path.glob("quality_*.safetensors"))) == 1
    own = quality(base, base, evaluate, arm="base", cache=tmp_path)
    assert [item["metric"] for item in own] == ["clip_score", "fid", "kid"]
    assert own[0]["value"] > items[0]["value"]
    assert quality(worse, base, evaluate, arm="unlearned") == items
    assert quality(worse, base, wanting(None), arm="unlearned") == []


def test_pictures_do_not_depend_on_how_many_are_drawn_at_once(
    base: LoadedModel, worse: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = wanting(["lpips", "fid"])
    (distance, spread) = quality(worse, base, evaluate, arm="a")
    monkeypatch.setattr("adapter_mu.evaluate.quality.measure.AT_ONCE", 1)
    (again, spread_again) = quality(worse, base, evaluate, arm="a")
    assert again["value"] == pytest.approx(distance["value"], abs=1e-3)
    assert spread_again["value"] == pytest.approx(spread["value"], rel=1e-2)


def test_real_pictures_can_be_the_reference(base: LoadedModel, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number, picture in enumerate(draw(random_scenes(5, generator), generator)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(tmp_path / f"{number}.png")
    (item,) = quality(base, base, wanting({"measures": ["fid"], "reference": tmp_path}), arm="base")
    assert f"against 5 pictures of {tmp_path}" in item["convention"]
    with pytest.raises(RecipeError, match="no pictures in .*none"):
        check_quality(wanting({"measures": ["kid"], "reference": tmp_path / "none"}))


def test_clip_stands_in_where_there_is_no_inception(base: LoadedModel, tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path)
    spec = {"measures": ["clip_score", "fid"], "features": "clip", "clip": str(folder)}
    evaluate = wanting(spec)
    score, distance = quality(base, base, evaluate, arm="base")
    assert score["convention"] == f"100 max(cos, 0) of CLIP {folder}" and 0 <= score["value"] <= 100
    assert distance["convention"].startswith(f"FID in image features of CLIP {folder}")
    network = feature_network(evaluate)
    assert network.of(torch.rand(3, 3, 20, 20)).shape == (3, network.width)


def nudity(measures: list[str], **more: Any) -> Evaluate:
    return wanting({"measures": measures, **more}, detector="nudenet")


def test_what_is_missing_is_named_before_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(features_module, "_installed", lambda: False)
    for measure in ("clip_score", "fid"):
        with pytest.raises(ModelError, match="hf download openai/clip-vit-base-patch32"):
            check_quality(nudity([measure]))
    with pytest.raises(ModelError, match="Inception features need torchvision, torch-fidelity"):
        check_quality(nudity(["fid"], features="inception"))
    monkeypatch.setattr(perceptual_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="LPIPS needs torchvision"):
        check_quality(nudity(["lpips"]))


def test_weights_of_inception_and_lpips_are_never_fetched_silently(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(features_module, "_installed", lambda: True)
    monkeypatch.setattr(perceptual_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ModelError, match="Inception's weights are not on this machine; bring them with: python -c"):
        check_quality(nudity(["fid"], features="inception"))
    with pytest.raises(ModelError, match="AlexNet's weights for LPIPS are not on this machine"):
        check_quality(nudity(["lpips"]))


def test_inception_is_chosen_where_it_is_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: torchvision does not work beside a CPU torch, so that the real one cannot run here."""
    monkeypatch.setattr(features_module, "_has_inception", lambda: True)
    monkeypatch.setattr(features_module, "_installed", lambda: True)
    monkeypatch.setattr(features_module.Path, "is_file", lambda _: True)
    monkeypatch.setattr(features_module, "_inception_network", lambda: lambda x: x.float().flatten(1)[:, :2048])
    network = feature_network(nudity(["fid"]))
    assert network.name.startswith("Inception v3") and network.of(torch.ones(2, 3, 32, 32)).unique().tolist() == [255.0]


def test_too_few_prompts_for_a_distance_of_sets() -> None:
    with pytest.raises(RecipeError, match="at least two prompts"):
        check_quality(wanting({"measures": ["fid"], "prompts": Prompts(prompts=["a ring"], images=1)}))


def test_the_shapes_detector_reads_sets_of_any_length() -> None:
    network, pictures = feature_network(wanting(["fid"])), torch.rand(300, 3, 32, 32)
    features = network.of(pictures)
    assert features.shape == (300, network.width)
    assert torch.allclose(features.square().mean(1), torch.ones(300), atol=1e-4)
    assert set(read(load_shapes_detector(), pictures)) == {"shape", "colour", "background", "texture"}


def test_an_arms_quality_is_measured_once_and_belongs_to_its_weights(
    base: LoadedModel, worse: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("shapes/demo").model_copy(update={"evaluate": wanting(["clip_score"])})
    run = Run(recipe, tmp_path, base, "hash", new_detector("shapes"))
    quality_of_arm(run, "unlearned", worse)
    items = quality_items(run.arm_folder("unlearned"))
    assert [item["metric"] for item in items] == ["clip_score"] and quality_done(run.arm_folder("unlearned"))
    monkeypatch.setattr("adapter_mu.stages.quality.quality", lambda *_, **__: pytest.fail("measured twice"))
    quality_of_arm(run, "unlearned", worse)
    assert quality_items(run.arm_folder("unlearned")) == items and quality_items(tmp_path / "none") == []
    with pytest.raises(RecipeError, match="scores of another model named 'unlearned'"):
        quality_of_arm(run, "unlearned", base)
