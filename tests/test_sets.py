"""Sets: batches that depend on (seed, step, stream) only, a cache keyed by content, pictures that are judged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_model
from tiny_runs import CAPTIONS, tiny_set
from torch import Tensor

from adapter_mu.data import cache
from adapter_mu.data.cache import cached, content_key, fingerprint, write_text
from adapter_mu.data.sampling import PublishedSeed, decode, initial_noise, sample_latents
from adapter_mu.data.sets import TRIES, Batch, LatentSet, generated_set
from adapter_mu.errors import RecipeError
from adapter_mu.models import LoadedModel
from adapter_mu.params import files
from adapter_mu.recipe import Prompts, Sampler

SAMPLER = Sampler(steps=2, guidance=2.0, batch_size=3)
SPEC = Prompts(prompts=["a {shape}"], fill={"shape": ["ring", "star"]}, shows="{shape}", images=4, seed=5)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("sd")


def parts(batch: Batch) -> list[Tensor]:
    return [batch.latents, batch.noise, batch.timesteps, batch.condition.embeds]


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parts(first), parts(second), strict=True))


def draw(data: LatentSet, seed: int = 0, step: int = 3, stream: str = "attacker 0", empty: float = 0.0) -> Batch:
    return data.batch(6, seed, step, stream, empty)


# Batches


def test_a_batch_does_not_depend_on_what_was_drawn_before(model: LoadedModel) -> None:
    data = tiny_set(model, CAPTIONS["forget"])
    first = draw(data)
    torch.manual_seed(123)
    for step in (9, 4, 2):
        draw(data, step=step)
        torch.randn(5)
    assert same(draw(data), first)
    assert same(draw(tiny_set(model, CAPTIONS["forget"])), first)


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 4}, {"stream": "attacker 1"}])
def test_seed_step_and_stream_each_make_another_batch(model: LoadedModel, other: dict[str, Any]) -> None:
    data = tiny_set(model, CAPTIONS["forget"])
    first, second = draw(data), draw(data, **other)
    assert not torch.equal(first.noise, second.noise) and not torch.equal(first.timesteps, second.timesteps)


def test_the_draw_never_changes(model: LoadedModel) -> None:
    """Published numbers and resumed runs rest on it."""
    batch = draw(tiny_set(model, CAPTIONS["forget"]))
    assert batch.timesteps.tolist() == [713, 689, 677, 979, 318, 852]
    assert batch.noise.flatten()[:3].tolist() == pytest.approx([-1.2612, -0.3021, -0.3042], abs=1e-4)
    assert initial_noise(model, [7]).flatten()[:3].tolist() == pytest.approx([-0.2320, 1.9685, 0.1896], abs=1e-4)


def test_dropped_captions_leave_the_rest_of_the_batch_alone(model: LoadedModel) -> None:
    data = tiny_set(model, CAPTIONS["forget"])
    full, half, none = (data.batch(64, 0, 3, "attacker 0", share) for share in (0.0, 0.5, 1.0))
    for batch in (half, none):
        for a, b in zip(parts(full)[:3], parts(batch)[:3], strict=True):
            assert torch.equal(a, b)
    empty = data.empty.embeds
    assert torch.equal(none.condition.embeds, empty.expand(64, -1, -1))
    dropped = (half.condition.embeds == empty).flatten(1).all(1)
    assert 16 < dropped.sum() < 48
    assert torch.equal(half.condition.embeds[~dropped], full.condition.embeds[~dropped])


def test_latents_keep_their_captions(model: LoadedModel) -> None:
    data = tiny_set(model, CAPTIONS["forget"])
    batch = draw(data)
    for latent, embeds in zip(batch.latents, batch.condition.embeds, strict=True):
        (row,) = (i for i, known in enumerate(data.latents) if torch.equal(known, latent))
        assert torch.equal(embeds, data.condition.embeds[row])


def test_every_timestep_is_trained(model: LoadedModel) -> None:
    drawn = tiny_set(model, CAPTIONS["forget"]).batch(20_000, 0, 0, "x").timesteps
    assert drawn.unique().tolist() == list(range(model.num_train_timesteps))


# Sampling


def test_a_picture_depends_on_its_seed_and_prompt_only(model: LoadedModel) -> None:
    settings = {"steps": 3, "guidance": 2.0}
    prompts, seeds = ["a ring", "a star", "a ring"], [1, 2, 3]
    together = sample_latents(model, prompts, seeds, batch_size=2, **settings)  # type: ignore[arg-type]
    alone = [sample_latents(model, [p], [s], batch_size=1, **settings) for p, s in zip(prompts, seeds, strict=True)]  # type: ignore[arg-type]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.equal(together[0], together[2])


def test_a_sampler_that_adds_noise_is_seeded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    model = tiny_model("sd")
    model.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(model.pipeline.scheduler.config)
    first, second = (sample_latents(model, ["a ring"], [1], steps=3, guidance=2.0, batch_size=1) for _ in range(2))
    assert torch.equal(first, second)


def test_initial_noise_has_one_generator_a_picture(model: LoadedModel) -> None:
    noise = initial_noise(model, [3, 4, 3])
    assert noise.shape == (3, 4, 8, 8) and torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])


def test_pictures_of_a_half_precision_vae_are_decoded_in_full_precision() -> None:
    model = tiny_model("sd")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = decode(model, latents, 1)
    model.vae.to(torch.float16)
    found = decode(model, latents, 1)
    assert expected.shape == (2, 3, 16, 16) and 0 <= expected.min() and expected.max() <= 1
    assert model.vae.dtype == torch.float16
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)  # weights rounded once, nothing else


# The cache


def test_a_set_is_drawn_once(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    monkeypatch.setattr("adapter_mu.data.sets.sample_latents", None)  # a second draw would fail
    second = generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    assert torch.equal(first.latents, second.latents) and first.captions == second.captions
    assert sorted(first.captions) == ["a ring", "a ring", "a star", "a star"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"base_hash": "another"},
        {"spec": SPEC.model_copy(update={"seed": 6})},
        {"spec": SPEC.model_copy(update={"prompts": ["the {shape}"]})},
        {"spec": SPEC.model_copy(update={"images": 3})},
        {"sampler": SAMPLER.model_copy(update={"guidance": 3.0})},
        {"sampler": SAMPLER.model_copy(update={"steps": 3})},
        {"judge": lambda pictures, shows: torch.ones(len(shows), dtype=torch.bool)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_content_is_another_file(model: LoadedModel, tmp_path: Path, change: dict[str, Any]) -> None:
    known = {"base_hash": "base", "spec": SPEC, "sampler": SAMPLER}
    generated_set(model, folder=tmp_path, **known)  # type: ignore[arg-type]
    generated_set(model, folder=tmp_path, **(known | change))  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("part", ["text_encoder", "vae", "scheduler"])
def test_the_parts_beside_the_unet_are_content_too(tmp_path: Path, part: str) -> None:
    """Bases that share a UNet and differ in their text encoder would draw other pictures."""
    model = tiny_model("sd")
    generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    if part == "scheduler":
        model.pipeline.scheduler.register_to_config(beta_end=0.013)
    else:
        with torch.no_grad():
            next(getattr(model.pipeline, part).parameters()).mul_(1.001)
    generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_set_keeps_the_seeds_and_guidance_of_a_csv(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("prompt,sd_seed,sd_guidance_scale\na ring,7,5\na star,8,\n")
    found = generated_set(model, "base", Prompts(csv=tmp_path / "list.csv"), SAMPLER, tmp_path / "cache")
    alone = [
        sample_latents(model, [text], [PublishedSeed(seed)], steps=2, guidance=guidance, batch_size=1)
        for text, seed, guidance in (("a ring", 7, 5.0), ("a star", 8, SAMPLER.guidance))
    ]
    torch.testing.assert_close(found.latents, torch.cat(alone))


def test_the_file_of_a_set_does_not_depend_on_how_its_prompts_are_written(model: LoadedModel, tmp_path: Path) -> None:
    generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    unused = SPEC.model_copy(update={"fill": SPEC.fill | {"size": ["big"]}})
    generated_set(model, "base", unused, SAMPLER, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_content_keys() -> None:
    assert content_key(a=1, b=[2.5, "x"]) == content_key(b=[2.5, "x"], a=1)
    assert len({content_key(a=1), content_key(a=2), content_key(b=1), content_key(a="1"), content_key()}) == 5
    with pytest.raises(TypeError):
        content_key(a=torch.zeros(3000))  # its text is abridged: two tensors would share a key


def test_a_fingerprint_sees_every_bit_name_and_type() -> None:
    net = torch.nn.BatchNorm1d(3)
    seen = [fingerprint(net)]
    assert seen == [fingerprint(net)] and len(seen[0]) == 16
    with torch.no_grad():
        net.weight[2] += 1e-7
    seen.append(fingerprint(net))
    net.running_mean[0] += 1
    seen += [fingerprint(net), fingerprint(net.to(torch.bfloat16)), fingerprint(torch.nn.Sequential(net))]
    assert len(set(seen)) == 5


def half_written(path: os.PathLike[str] | str) -> None:
    Path(path).write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", ["making", "writing"])
def test_a_half_written_file_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    path, content = tmp_path / "deep" / "x.safetensors", {"a": torch.arange(3.0)}

    def make() -> dict[str, Tensor]:
        if stop == "making":
            raise KeyboardInterrupt
        return content

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", lambda tensors, path, metadata: half_written(path))
        with pytest.raises(KeyboardInterrupt):
            cached(path, make)
        assert not path.exists()
    # What a kill leaves behind, where no `finally` runs:
    path.parent.mkdir(exist_ok=True)
    path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(b"half")
    assert torch.equal(cached(path, lambda: content)["a"], content["a"])
    assert torch.equal(cached(path, lambda: half_written("never"))["a"], content["a"])  # type: ignore[arg-type, return-value]


def test_a_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "log.txt"
    write_text(path, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache.Path, "write_text", lambda self, *_, **__: half_written(self))
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["log.txt"]


# The judge


def judged(
    model: LoadedModel, folder: Path, verdict: Callable[[int, list[str]], list[bool]], images: int = 4
) -> tuple[LatentSet, list[list[str]]]:
    """The set under a judge; what it was asked at each attempt."""
    asked: list[list[str]] = []

    def judge(pictures: Tensor, shows: list[str]) -> Tensor:
        assert pictures.shape == (len(shows), 3, 16, 16) and 0 <= pictures.min() and pictures.max() <= 1
        asked.append(shows)
        return torch.tensor(verdict(len(asked) - 1, shows))

    return generated_set(model, "base", SPEC.model_copy(update={"images": images}), SAMPLER, folder, judge), asked


def test_without_misses_a_judge_changes_nothing(model: LoadedModel, tmp_path: Path) -> None:
    plain = generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    data, asked = judged(model, tmp_path, lambda _, shows: [True] * len(shows))
    assert torch.equal(data.latents, plain.latents) and data.captions == plain.captions and len(asked) == 1


def test_a_miss_is_drawn_again_from_other_noise(model: LoadedModel, tmp_path: Path) -> None:
    plain = generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    data, asked = judged(model, tmp_path, lambda attempt, shows: [attempt > 0 or i != 1 for i in range(len(shows))])
    assert asked == [[c.split()[-1] for c in plain.captions], [plain.captions[1].split()[-1]]]
    assert data.captions == plain.captions
    assert [torch.equal(a, b) for a, b in zip(data.latents, plain.latents, strict=True)] == [True, False, True, True]


def test_what_misses_every_time_is_left_out_with_its_caption(model: LoadedModel, tmp_path: Path) -> None:
    plain = generated_set(model, "base", SPEC, SAMPLER, tmp_path)
    data, asked = judged(model, tmp_path, lambda _, shows: [show == "ring" for show in shows])
    rings = [i for i, caption in enumerate(plain.captions) if caption == "a ring"]
    assert len(asked) == TRIES and data.captions == ["a ring"] * 2
    assert torch.equal(data.latents, plain.latents[rings]) and len(data.condition) == 2


def test_a_base_that_does_not_show_the_concept_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="miss what they should show, such as 'ring' for 'a ring'|'star' for 'a star'"
    ):
        judged(model, tmp_path, lambda _, shows: [False] * len(shows))
    assert not list(tmp_path.iterdir())
