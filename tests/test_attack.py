"""The attack is what real trainers do, it is the same for every arm, and it leaves its victim alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

import adapter_mu.attack.finetune as attacking
from adapter_mu.attack.finetune import finetune
from adapter_mu.data.cache import fingerprint
from adapter_mu.data.sampling import sample_latents
from adapter_mu.data.sets import Batch, LatentSet
from adapter_mu.models import LoadedModel, encode_prompts, load_model, unconditional, with_unet
from adapter_mu.recipe import Attack, Prompts

SEED = 5


@pytest.fixture(scope="module", params=["shapes-sd", "shapes-sdxl"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


@pytest.fixture(scope="module")
def sd() -> LoadedModel:
    return load_model("shapes-sd")


def latents_of(model: LoadedModel, count: int = 6) -> LatentSet:
    """Captions with latents that the model does not expect, so that there is something to learn."""
    captions = ["a red ring", "a blue ring"] * (count // 2)
    drawn = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    return LatentSet(drawn, captions, encode_prompts(model, captions), unconditional(model, 1), 1000)


def attack(**changes: Any) -> Attack:
    standard = {"lr": 1e-4, "batch_size": 4, "steps": [1], "empty_captions": 0.1}
    return Attack(data=Prompts(prompts=["a ring"], images=1), **(standard | changes))


def nothing(step: int, attacked: LoadedModel) -> None:
    pass


def training_formula(model: LoadedModel, unet: Any, batch: Batch) -> Tensor:
    """The loss of diffusers' text-to-image training scripts, with their scheduler."""
    scheduler = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    added = None
    if batch.condition.pooled is not None:
        added = {"text_embeds": batch.condition.pooled, "time_ids": batch.condition.time_ids}
    target = batch.noise
    if model.prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    predicted = unet(noisy, batch.timesteps, batch.condition.embeds, added_cond_kwargs=added).sample
    return F.mse_loss(predicted, target)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every loss of the attack as it is taken."""
    taken: list[float] = []
    real = attacking.diffusion_loss

    def spy(*args: Any) -> Tensor:
        loss = real(*args)
        taken.append(loss.item())
        return loss

    monkeypatch.setattr(attacking, "diffusion_loss", spy)
    return taken


def test_the_steps_are_the_training_scripts_steps(model: LoadedModel, losses: list[float]) -> None:
    """Loss by diffusers' formula, then clipping and torch's AdamW: the same weights come out."""
    data, after = latents_of(model), {}
    settings = attack(steps=[3], max_grad_norm=0.05, weight_decay=10.0)
    finetune(model, data, settings, SEED, lambda step, m: after.update(copy.deepcopy(m.unet.state_dict())))

    unet, expected = copy.deepcopy(model.unet).train().requires_grad_(True), []
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, weight_decay=10.0)
    for step in (1, 2, 3):
        loss = training_formula(model, unet, data.batch(4, SEED, step, "attack", 0.1))
        optimizer.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(unet.parameters(), 0.05) > 0.05, "or clipping is not tested"
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    moved = torch.cat([(after[name] - weight).flatten() for name, weight in model.unet.state_dict().items()])
    error = torch.cat([(after[name] - weight).flatten() for name, weight in unet.state_dict().items()])
    assert error.norm() < 1e-3 * moved.norm()


def test_v_prediction_trains_on_velocity(sd: LoadedModel, losses: list[float]) -> None:
    pipeline = copy.copy(sd.pipeline)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    model = replace(sd, pipeline=pipeline)
    data = latents_of(model)
    finetune(model, data, attack(), SEED, nothing)
    expected = training_formula(model, model.unet, data.batch(4, SEED, 1, "attack", 0.1))
    assert losses == pytest.approx([expected.item()], rel=1e-5)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.1, 0.07, 0.13), (1.0, 1, 1)])
def test_captions_are_dropped_as_often_as_asked(model: LoadedModel, share: float, low: float, high: float) -> None:
    data = latents_of(model)
    dropped = total = 0
    for step in range(100):
        embeds = data.batch(8, SEED, step, "attack", share).condition.embeds
        dropped += int((embeds == data.empty.embeds).flatten(1).all(1).sum())
        total += len(embeds)
    assert low <= dropped / total <= high


def seen_by(model: LoadedModel, data: LatentSet, monkeypatch: pytest.MonkeyPatch, disturb: bool) -> list[list[Tensor]]:
    """What three attack steps were shown."""
    seen: list[list[Tensor]] = []
    real = attacking.diffusion_loss

    def spy(attacked: LoadedModel, params: None, *batch: Any) -> Tensor:
        seen.append([*batch[:3], batch[3].embeds])
        return real(attacked, params, *batch)

    def scoring(step: int, attacked: LoadedModel) -> None:
        if disturb:
            torch.manual_seed(step)
            torch.randn(7)

    with monkeypatch.context() as patch:
        patch.setattr(attacking, "diffusion_loss", spy)
        finetune(model, data, attack(steps=[1, 2, 3] if disturb else [3], empty_captions=0.5), SEED, scoring)
    return seen


def test_every_arm_meets_the_same_batches(sd: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its weights, however often it is scored, whatever else draws random numbers."""
    other = copy.deepcopy(sd.unet)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05
    data = latents_of(sd)
    first = seen_by(sd, data, monkeypatch, disturb=False)
    second = seen_by(with_unet(sd, other), data, monkeypatch, disturb=True)
    assert len(first) == len(second) == 3
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(first[0][1], first[1][1]), "each step has its own noise"


def test_the_model_given_is_unchanged(model: LoadedModel) -> None:
    before = {name: fingerprint(part) for name, part in (("unet", model.unet), ("vae", model.vae))}
    frozen = [weight.requires_grad for weight in model.unet.parameters()]
    finetune(model, latents_of(model), attack(steps=[2], lr=1e-2), SEED, nothing)
    assert {name: fingerprint(part) for name, part in (("unet", model.unet), ("vae", model.vae))} == before
    assert [weight.requires_grad for weight in model.unet.parameters()] == frozen == [False] * len(frozen)
    assert not model.unet.training


def test_at_step_is_called_once_after_each_named_step(sd: LoadedModel) -> None:
    calls: list[tuple[int, str, bool]] = []

    def remember(step: int, attacked: LoadedModel) -> None:
        calls.append((step, fingerprint(attacked.unet), attacked.unet.training))

    finetune(sd, latents_of(sd), attack(steps=[4, 1, 2, 2]), SEED, remember)
    assert [step for step, _, _ in calls] == [1, 2, 4]
    assert len({weights for _, weights, _ in calls} | {fingerprint(sd.unet)}) == 4
    assert not any(training for _, _, training in calls)


def test_the_attack_learns(model: LoadedModel) -> None:
    data = latents_of(model)
    fixed = data.batch(32, SEED, 0, "held for the test")
    measured: list[float] = []

    def judge(step: int, attacked: LoadedModel) -> None:
        with torch.no_grad():
            measured.append(training_formula(model, attacked.unet, fixed).item())

    judge(0, model)
    finetune(model, data, attack(steps=[15, 30], lr=1e-3, batch_size=8), SEED, judge)
    assert measured[0] > measured[1] > measured[2] and measured[2] < 0.8 * measured[0]


def test_a_half_precision_model_is_trained_in_fp32_and_scored_in_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("shapes-sd", dtype=torch.bfloat16)
    trained: set[torch.dtype] = set()
    found: list[LoadedModel] = []
    real = attacking.diffusion_loss

    def spy(attacked: LoadedModel, *batch: Any) -> Tensor:
        trained.add(attacked.dtype)
        return real(attacked, *batch)

    monkeypatch.setattr(attacking, "diffusion_loss", spy)
    finetune(model, latents_of(model), attack(steps=[1, 2]), SEED, lambda step, m: found.append(m))
    assert trained == {torch.float32}
    assert [m.dtype for m in found] == [torch.bfloat16] * 2
    sampled = sample_latents(found[-1], ["a ring"], [0], steps=2, guidance=4.0, batch_size=1)
    assert sampled.isfinite().all()
