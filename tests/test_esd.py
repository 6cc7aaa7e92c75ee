"""ESD: its target, the states it learns at, its loss, and which parameters the variants move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from tiny_pipelines import tiny_model
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.data.seeds import generator_for
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.methods import RememberingMethod, method_names, new_method, register
from adapter_mu.methods.esd import Esd, EsdOptions, esd_target
from adapter_mu.methods.walks import walk
from adapter_mu.models import LoadedModel, encode_prompts, unconditional
from adapter_mu.params import make_adapter

PROMPTS = [Prompt(text, "ring") for text in ("a ring", "a red ring")]
OPTIONS = EsdOptions(eta=2.0, trajectories=3, sampler_steps=4, guidance=3.0, batch_size=2)
TEXTS = ["a ring", "a red ring", "a ring"]  # three trajectories over two prompts
CASES = [("sd", "epsilon"), ("sdxl", "epsilon"), ("sd", "v_prediction")]


@pytest.fixture(params=CASES, ids="-".join)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    kind, prediction = request.param
    return tiny_model(kind, prediction_type=prediction)


def prepared(model: LoadedModel, folder: Path, **changes: Any) -> Esd:
    method = Esd(OPTIONS.model_copy(update=changes))
    method.prepare(model, "base", PROMPTS, folder)
    return method


def epsilon(model: LoadedModel, x: Tensor, t: int, rows: Any) -> Tensor:
    """The UNet's noise, called directly; v-predictions are turned by hand."""
    added = None if rows.pooled is None else {"text_embeds": rows.pooled, "time_ids": rows.time_ids}
    output = model.unet(x, t, rows.embeds, added_cond_kwargs=added).sample
    if model.prediction_type == "epsilon":
        return output
    share = model.alphas_cumprod[t]
    return share.sqrt() * output + (1 - share).sqrt() * x


@torch.no_grad()
def ddim_walk(model: LoadedModel) -> list[tuple[int, Tensor]]:
    """Every timestep with the state it is denoised from, by the formula of DDIM (Song et al. 2021, eq. 12, sigma 0)."""
    steps, total = OPTIONS.sampler_steps, model.num_train_timesteps
    texts, empty = encode_prompts(model, TEXTS), unconditional(model, len(TEXTS))
    x = torch.stack([torch.randn(4, 8, 8, generator=generator_for(seed, "picture")) for seed in range(len(TEXTS))])
    walk = []
    for i in reversed(range(steps)):
        t = i * (total // steps) + 1  # "leading" spacing with steps_offset 1
        walk.append((t, x))
        without = epsilon(model, x, t, empty)
        noise = without + OPTIONS.guidance * (epsilon(model, x, t, texts) - without)
        now, then = model.alphas_cumprod[t], model.alphas_cumprod[max(0, t - total // steps)]
        clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
        x = then.sqrt() * clean + (1 - then).sqrt() * noise
    return walk


def test_target_is_the_papers() -> None:
    conditional, empty = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 4.0])
    assert esd_target(conditional, empty, 0.0).tolist() == [3.0, 4.0]
    assert esd_target(conditional, empty, 1.0).tolist() == [5.0, 4.0]
    assert esd_target(conditional, empty, 3.0).tolist() == [9.0, 4.0]


def test_states_and_timesteps_are_those_of_ddim(model: LoadedModel, tmp_path: Path) -> None:
    found = prepared(model, tmp_path).trajectories
    walk = ddim_walk(model)
    assert found.timesteps.tolist() == [t for t, _ in walk] == [751, 501, 251, 1]
    torch.testing.assert_close(found.states, torch.stack([x for _, x in walk], dim=1))


def test_pure_noise_goes_with_the_first_timestep(model: LoadedModel, tmp_path: Path) -> None:
    """The public port pairs the finished picture with it."""
    found = prepared(model, tmp_path).trajectories
    for row in range(len(TEXTS)):
        noise = torch.randn(4, 8, 8, generator=generator_for(row, "picture"))
        assert torch.equal(found.states[row, 0], noise)
    assert found.timesteps[0] == model.pipeline.scheduler.timesteps[0] == found.timesteps.max()


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, PNDMScheduler])
def test_states_are_what_the_unet_is_shown_by_any_scheduler(
    scheduler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL ships with Euler, whose latents have another scale; SD 1.x with PNDM, which visits a timestep twice."""
    model = tiny_model("sd")
    model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config)
    shown: list[tuple[int, Tensor]] = []
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: shown.append((int(inputs[1]), inputs[0])))
    # The targets call the UNet too, but with its parameters replaced by nothing and one half of the rows.
    monkeypatch.setattr(Esd, "_targets", lambda self, model, states, *_: torch.zeros_like(states))
    found = prepared(model, tmp_path, trajectories=2, guidance=1.0).trajectories
    handle.remove()
    assert len(shown) == found.states.shape[1] >= OPTIONS.sampler_steps
    assert [t for t, _ in shown] == found.timesteps.tolist()
    torch.testing.assert_close(torch.stack([x for _, x in shown], dim=1), found.states)


def test_loss_is_the_mean_squared_distance_to_the_target(model: LoadedModel, tmp_path: Path) -> None:
    method, walk = prepared(model, tmp_path), ddim_walk(model)
    adapter = make_adapter(model.unet, "dense", "cross_attention")
    theta = {name: tensor.detach() + 0.1 for name, tensor in adapter.parameters().items()}
    found = method.loss(model, theta, batch_size=5, seed=1, step=7)

    rng = generator_for(1, "esd", 7)
    rows, stages = (torch.randint(n, (5,), generator=rng).tolist() for n in (len(TEXTS), len(walk)))
    texts, empty = encode_prompts(model, TEXTS), unconditional(model, 1)
    frozen = {name: parameter.clone() for name, parameter in model.unet.named_parameters()}
    squares = []
    for row, stage in zip(rows, stages, strict=True):
        t, x = walk[stage][0], walk[stage][1][row : row + 1]
        without = epsilon(model, x, t, empty)
        target = without - OPTIONS.eta * (epsilon(model, x, t, texts[row]) - without)
        model.unet.load_state_dict(frozen | theta)
        squares.append((epsilon(model, x, t, texts[row]) - target).square())
        model.unet.load_state_dict(frozen)
    torch.testing.assert_close(found, torch.cat(squares).mean())


def test_batches_depend_on_seed_and_step_only(tmp_path: Path) -> None:
    model = tiny_model("sd")
    method = prepared(model, tmp_path)
    weights = make_adapter(model.unet, "dense", "cross_attention").parameters()

    def loss(**where: int) -> float:
        return float(method.loss(model, weights, 4, **where).detach())

    first = loss(seed=0, step=2)
    torch.manual_seed(9)
    others = {loss(seed=0, step=1), loss(seed=1, step=2)}
    assert loss(seed=0, step=2) == first and first not in others


def test_trajectories_are_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("sd")
    first = prepared(model, tmp_path).trajectories
    prepared(model, tmp_path, eta=1.0)
    monkeypatch.setattr("adapter_mu.methods.walks.sample_latents", None)  # a second walk would fail
    second = prepared(model, tmp_path).trajectories
    assert torch.equal(first.states, second.states) and torch.equal(first.targets, second.targets)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("variant", "moves"),
    [
        ("cross_attention", lambda name: ".attn2." in name),  # ESD-x
        (
            "non_cross_attention",  # ESD-u
            lambda name: (
                ".attn2." not in name and name.split(".")[0] not in ("conv_out", "time_embedding", "add_embedding")
            ),
        ),
        ("full", lambda name: True),  # ESD-f
    ],
)
def test_variants_move_their_parameters_and_no_others(kind: str, variant: str, moves: Any, tmp_path: Path) -> None:
    model = tiny_model(kind)
    method, adapter = prepared(model, tmp_path), make_adapter(model.unet, "dense", variant)
    names = {name for name, _ in model.unet.named_parameters()}
    assert set(adapter.parameters()) == {name for name in names if moves(name)}
    method.loss(model, adapter.parameters(), 2, 0, 0).backward()
    assert any(tensor.grad is not None and tensor.grad.any() for tensor in adapter.parameters().values())
    assert not any(parameter.grad is not None for parameter in model.unet.parameters())


def test_methods_are_made_by_name() -> None:
    method = new_method("esd", {"eta": 3.0})
    assert "esd" in method_names() and isinstance(method, Esd) and method.options == EsdOptions(eta=3.0)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("esdd", {}, "no method 'esdd'; choose one of .*esd"),
        ("esd", {"etta": 1}, "'method.etta': unknown key; method esd takes trajectories, "),
        ("esd", {"eta": -1}, "'method.eta': Input should be greater than or equal to 0"),
        ("esd", {"trajectories": 0}, "'method.trajectories'"),
    ],
)
def test_a_wrong_method_is_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        new_method(name, options)


def test_a_name_belongs_to_one_method() -> None:
    assert "esd" in method_names()
    with pytest.raises(UserError, match="Two methods are registered as 'esd'"):
        register("esd", EsdOptions)(Esd)


@pytest.mark.parametrize(("eta", "paper"), [(1.0, 0.0), (2.0, 1.0), (3.0, 2.0)])
def test_the_official_target_is_the_papers_with_eta_less_one(eta: float, paper: float) -> None:
    """The newer public code: eps*(c) - eta [eps*(c) - eps*(empty)]."""
    conditional, empty = torch.randn(2, 3), torch.randn(2, 3)
    options = EsdOptions(eta=eta, target="official")
    expected = conditional - eta * (conditional - empty)
    torch.testing.assert_close(esd_target(conditional, empty, options.paper_eta), expected)
    assert options.paper_eta == paper and EsdOptions(eta=eta).paper_eta == eta


@pytest.mark.parametrize("x_t", ["student", "ema"])
def test_a_moving_x_t_comes_from_the_followed_model_and_its_target_from_the_base(x_t: str, tmp_path: Path) -> None:
    model = tiny_model("sd")
    method = prepared(model, tmp_path, x_t=x_t, decay=0.5, refresh_every=2)
    adapter = make_adapter(model.unet, "dense", "cross_attention")
    method.follow(adapter)
    assert isinstance(method, RememberingMethod) and not list(tmp_path.iterdir()), "nothing can be computed before"
    theta = adapter.parameters()
    start = {name: tensor.detach().clone() for name, tensor in theta.items()}
    with torch.no_grad():
        for tensor in theta.values():
            tensor += 0.2
    method.after_step(theta)
    share = 1.0 if x_t == "student" else 0.5
    frozen = {name: parameter.clone() for name, parameter in model.unet.named_parameters()}
    found = method.loss(model, theta, batch_size=5, seed=1, step=4)

    teacher = method.teacher
    assert teacher is not None
    seeds = [(1 * 1_000_003 + 4) * 1_000_003 + i for i in range(len(TEXTS))]
    moved = {name: start[name] + share * 0.2 for name in start}
    model.unet.load_state_dict(frozen | moved)
    states, timesteps = walk(model, TEXTS, seeds, OPTIONS, "")
    model.unet.load_state_dict(frozen)
    torch.testing.assert_close(teacher.states, states, rtol=1e-4, atol=1e-4)

    rng = generator_for(1, "esd", 4)
    rows, stages = (torch.randint(n, (5,), generator=rng).tolist() for n in states.shape[:2])
    texts, empty, squares = encode_prompts(model, TEXTS), unconditional(model, 1), []
    for row, stage in zip(rows, stages, strict=True):
        t, x = int(timesteps[stage]), states[row, stage][None]
        without = epsilon(model, x, t, empty)
        target = without - OPTIONS.eta * (epsilon(model, x, t, texts[row]) - without)
        model.unet.load_state_dict(frozen | {name: tensor.detach() for name, tensor in theta.items()})
        squares.append((epsilon(model, x, t, texts[row]) - target).square())
        model.unet.load_state_dict(frozen)
    torch.testing.assert_close(found, torch.cat(squares).mean(), rtol=1e-3, atol=1e-4)
    method.loss(model, theta, 5, 1, 5)
    assert method.state().keys() == {"states", "timesteps", *(f"teacher.{name}" for name in theta)}
    assert method.result() is None


def test_of_several_concepts_each_has_its_own_trajectories(tmp_path: Path) -> None:
    prompts = [*PROMPTS, Prompt("a star", "star")]
    method = Esd(OPTIONS.model_copy(update={"trajectories": 4}))
    method.prepare(tiny_model("sd"), "base", prompts, tmp_path)
    assert method.texts == ["a ring", "a star", "a red ring", "a star"]
    listed = Esd(OPTIONS.model_copy(update={"concepts": ["nudity", "blood"]}))
    listed.prepare(tiny_model("sd"), "base", prompts, tmp_path)
    assert listed.texts == ["nudity", "blood", "nudity"]
