"""Detectors on CLIP and on classifiers, with tiny weights of the same architecture, against their definitions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny_clip import SIDE, WIDTH, save_processor, shaken, tiny_clip, tiny_config
from torch import Tensor, nn
from transformers import CLIPModel, ViTConfig, ViTForImageClassification

from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.evaluate.clip import Clip
from adapter_mu.evaluate.detectors import new_detector
from adapter_mu.evaluate.detectors.laion_nsfw import LaionHead
from adapter_mu.params.files import write_tensors

PICTURES = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def pixels() -> Tensor:
    """What CLIP is shown of pictures that have its size: eight bits, then standardised."""
    eight = (PICTURES * 255).round() / 255
    return (eight - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def seen_by(folder: Path) -> Tensor:
    model = CLIPModel.from_pretrained(folder).eval()
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels()).pooler_output), dim=1)


def test_clip_makes_the_models_own_unit_vectors(folder: Path) -> None:
    clip = Clip(str(folder), "CLIP", batch_size=2)
    assert torch.allclose(clip.pictures(PICTURES), seen_by(folder), atol=1e-5)
    texts = clip.texts(["a ring", "a ring and much more than fits into twelve tokens", "a ring"])
    assert torch.allclose(texts.norm(dim=1), torch.ones(3)) and torch.allclose(texts[0], texts[2], atol=1e-6)
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)
    assert clip.width == WIDTH and clip.facts()["weights"] == str(folder)


def test_clips_text_and_pictures_give_the_models_own_logits(folder: Path) -> None:
    clip, model = Clip(str(folder), "CLIP"), CLIPModel.from_pretrained(folder).eval()
    words = clip._tokenizer(["ring", "a star"], padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        logits = model(**words, pixel_values=pixels()).logits_per_image
    assert torch.allclose(clip.scale * clip.pictures(PICTURES) @ clip.texts(["ring", "a star"]).T, logits, atol=1e-3)


def test_zero_shot_clip_shares_the_softmax_between_concept_and_contrast(folder: Path) -> None:
    prompts = {"cat": ["a cat", "a kitten"], "dog": ["a dog"]}
    options = {"name": "clip", "weights": str(folder), "prompts": prompts, "contrast": ["a fish", "an owl", "a fox"]}
    detector: Any = new_detector(options)
    detector.check({"cat", "dog"})
    with pytest.raises(RecipeError, match="no descriptions of 'cow'"):
        detector.check({"cow"})
    asked = ["cat", "dog", "cat", "dog", "cat"]
    clip = Clip(str(folder), "CLIP")
    seen = seen_by(folder)
    for picture, concept, score in zip(seen, asked, detector.scores(PICTURES, asked).tolist(), strict=True):
        own = (clip.scale * clip.texts(prompts[concept]) @ picture).exp().sum()
        rest = (clip.scale * clip.texts(options["contrast"]) @ picture).exp().sum()
        assert score == pytest.approx(float(own / (own + rest)), abs=1e-4)
    assert torch.equal(detector.found(PICTURES, asked), detector.scores(PICTURES, asked) > 0.5)
    assert detector.facts()["prompts"] == prompts and len(detector.facts()["hash"]) == 64


def test_the_safety_checker_flags_what_diffusers_own_does(tmp_path: Path) -> None:
    logging.disable(logging.WARNING)
    model: Any = shaken(StableDiffusionSafetyChecker(tiny_config()))
    many = torch.rand(60, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    shown = ((many * 255).round() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():  # thresholds that half of the pictures pass
        seen = F.normalize(model.visual_projection(model.vision_model(shown).pooler_output))
        for name in ("concept_embeds", "special_care_embeds"):
            nearest = (seen @ F.normalize(getattr(model, name)).T).amax(1)
            getattr(model, f"{name}_weights").fill_(float(nearest.median()))
    model.save_pretrained(tmp_path / "safety_checker")
    save_processor(tmp_path / "feature_extractor")  # where an SD folder has it
    detector = new_detector({"name": "safety_checker", "weights": str(tmp_path / "safety_checker"), "batch_size": 7})
    _, flagged = model(shown, many.clone())
    logging.disable(logging.NOTSET)
    assert 0 < sum(flagged) < 60
    assert detector.found(many, ["nsfw"] * 60).tolist() == flagged
    assert 0 <= detector.scores(many, ["nsfw"] * 60).min() <= detector.scores(many, ["nsfw"] * 60).max() <= 1
    with pytest.raises(RecipeError, match="not 'violence'"):
        detector.check({"violence"})


def test_q16_is_a_softmax_over_its_two_prompts(folder: Path, tmp_path: Path) -> None:
    prompts = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    write_tensors(tmp_path / "q16.safetensors", {"prompts": prompts}, {})
    detector = new_detector({"name": "q16", "weights": str(tmp_path / "q16.safetensors"), "clip": str(folder)})
    unit = prompts / prompts.norm(dim=1, keepdim=True)
    expected = (100 * seen_by(folder) @ unit.T).softmax(1)[:, 1]
    assert torch.allclose(detector.scores(PICTURES, ["inappropriate"] * 5), expected, atol=1e-4)
    assert list(detector.thresholds) == ["0.5", "0.9"]
    write_tensors(tmp_path / "wrong.safetensors", {"prompts": torch.zeros(2, 3)}, {})
    wrong = new_detector({"name": "q16", "weights": str(tmp_path / "wrong.safetensors"), "clip": str(folder)})
    with pytest.raises(ModelError, match=r"one tensor \(2, 8\) for this CLIP; it has \(2, 3\)"):
        wrong.scores(PICTURES, ["inappropriate"] * 5)


def sequence(*widths: int) -> nn.Sequential:
    """LAION's H/14 layout: ReLU and dropout after each layer but the last two."""
    parts: list[nn.Module] = []
    for of, out in zip(widths[:-3], widths[1:-2], strict=True):
        parts += [nn.Linear(of, out), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*parts, nn.Linear(widths[-3], widths[-2]), nn.Linear(widths[-2], widths[-1]))


def test_laions_h14_layout_has_no_relu_between_its_last_layers() -> None:
    torch.manual_seed(0)
    network = sequence(WIDTH, 12, 6, 4, 1).eval()
    with torch.no_grad():
        network[-1].bias -= 0.43
    tensors = {f"layers.{name}": tensor for name, tensor in network.state_dict().items()}
    seen = torch.randn(40, WIDTH)
    expected = network(seen)[:, 0]
    assert (expected < 0).any()
    assert torch.allclose(LaionHead(tensors, "x")(seen), expected.clamp(0, 1), atol=1e-6)


def test_laions_l14_layout_is_standardised_and_squashed(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two, three = nn.Linear(WIDTH, 6), nn.Linear(6, 12), nn.Linear(12, 1)
    mean, variance = torch.randn(WIDTH) / 10, torch.rand(WIDTH) / 10
    tensors = {"norm.mean": mean, "norm.variance": variance}
    for number, layer in enumerate((one, two, three), 1):
        tensors |= {f"linear_{number}.{name}": tensor for name, tensor in layer.state_dict().items()}
    write_tensors(tmp_path / "head.safetensors", tensors, {})
    detector = new_detector({"name": "laion_nsfw", "weights": str(tmp_path / "head.safetensors"), "clip": str(folder)})
    seen = (seen_by(folder) - mean) / variance.sqrt()
    expected = three(two(one(seen).relu()).relu()).sigmoid()[:, 0]
    assert torch.allclose(detector.scores(PICTURES, ["nudity"] * 5), expected, atol=1e-4)
    assert set(detector.facts()) == {"name", "weights", "hash", "clip", "thresholds"}


def test_what_is_no_head_of_laions_or_of_another_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none of LAION's heads"):
        LaionHead({"weight": torch.zeros(1, 2)}, "file")
    head = {"linear_1.weight": torch.zeros(1, 3), "linear_1.bias": torch.zeros(1)}
    write_tensors(tmp_path / "other.safetensors", head, {})
    detector = new_detector({"name": "laion_nsfw", "weights": str(tmp_path / "other.safetensors"), "clip": str(folder)})
    with pytest.raises(ModelError, match="reads 3 numbers, but CLIP .* makes 8"):
        detector.scores(PICTURES, ["nsfw"] * 5)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    layer = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "tench", 1: "golf ball", 2: "church", 3: "parachute"}
    config = ViTConfig(**layer, image_size=SIDE, patch_size=8, id2label=labels, label2id={})
    shaken(ViTForImageClassification(config)).save_pretrained(where)
    return save_processor(where)


def test_a_classifier_finds_a_label_among_its_top(vit: Path) -> None:
    model = ViTForImageClassification.from_pretrained(vit).eval()
    with torch.no_grad():
        logits = model(pixel_values=pixels()).logits
    for top in (1, 3):
        detector = new_detector(
            {"name": "classifier", "weights": str(vit), "top": top, "labels": {"ball": "golf ball"}}
        )
        detector.check({"ball", "church"})
        ranks = (logits > logits[:, 1:2]).sum(1)  # how many labels are likelier than the golf ball
        assert torch.equal(detector.found(PICTURES, ["ball"] * 5), ranks < top)
        assert torch.allclose(detector.scores(PICTURES, ["ball"] * 5), logits.softmax(1)[:, 1], atol=1e-5)
    with pytest.raises(RecipeError, match="no label 'cat'"):
        detector.check({"cat"})


def test_a_classifier_can_have_thresholds(vit: Path) -> None:
    detector = new_detector({"name": "classifier", "weights": str(vit), "thresholds": [0.3, 0.2], "batch_size": 2})
    scores = detector.scores(PICTURES, ["church"] * 5)
    assert list(detector.thresholds) == ["0.2", "0.3"]
    assert torch.equal(detector.found(PICTURES, ["church"] * 5), scores > 0.2)


MISSING = {
    "safety_checker": ({}, "hf download CompVis/stable-diffusion-safety-checker"),
    "clip": ({"prompts": {"a": ["a"]}, "contrast": ["b"]}, "hf download openai/clip-vit-large-patch14"),
    "classifier": ({"weights": "google/vit-base-patch16-224"}, "hf download google/vit-base-patch16-224"),
    "laion_nsfw": ({}, "name a .safetensors file"),
    "q16": ({"weights": "none.safetensors"}, "no file none.safetensors"),
}


@pytest.mark.parametrize("name", MISSING)
def test_weights_that_are_not_here_are_named_and_never_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("adapter_mu.evaluate.detectors.registry._MADE", {})
    options, sentence = MISSING[name]
    with pytest.raises(ModelError, match=sentence):
        new_detector({"name": name, **options})


def test_a_folder_that_is_not_there_and_one_that_is_no_clip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        Clip(str(tmp_path / "gone" / "too" / "deep"), "CLIP")
    with pytest.raises(ModelError, match="transformers cannot read"):
        Clip(str(tmp_path), "CLIP").pictures(PICTURES)
