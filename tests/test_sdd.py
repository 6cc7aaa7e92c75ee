"""SDD: its loss against a few lines of its own, the moving average, several concepts, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_model
from tiny_runs import nudge, tiny_recipe, tiny_sets
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.data.seeds import generator_for
from adapter_mu.methods import new_method
from adapter_mu.methods.concepts import concept_groups, in_turn
from adapter_mu.methods.sdd import Sdd
from adapter_mu.models import LoadedModel, encode_prompts, unconditional
from adapter_mu.params import Adapter, make_adapter
from adapter_mu.train import Trainer

PROMPTS = [Prompt("a ring", "ring"), Prompt("a star", "star"), Prompt("a red ring", "ring")]
FEW = {"trajectories": 2, "sampler_steps": 3, "guidance": 3.0, "batch_size": 2, "refresh_every": 2, "decay": 0.5}
SUBSET = "cross_attention_kv"


def sdd(model: LoadedModel, adapter: Adapter, prompts: list[Prompt] = PROMPTS, **options: Any) -> Sdd:
    method = new_method("sdd", FEW | options)
    assert isinstance(method, Sdd)
    method.prepare(model, "base", prompts, Path())
    method.follow(adapter)
    return method


def noise(model: LoadedModel, weights: dict[str, Tensor], x: Tensor, t: int, rows: Any) -> Tensor:
    """The UNet's noise with these weights loaded, not merely passed."""
    before = {name: p.clone() for name, p in model.unet.named_parameters()}
    model.unet.load_state_dict(before | weights)
    added = None if rows.pooled is None else {"text_embeds": rows.pooled, "time_ids": rows.time_ids}
    found: Tensor = model.unet(x, t, rows.embeds, added_cond_kwargs=added).sample
    model.unet.load_state_dict(before)
    return found


@torch.no_grad()
def guided_walk(model: LoadedModel, weights: dict[str, Tensor], texts: list[str], seed: int) -> list[Tensor]:
    """DDIM's states before each of three steps (Song et al. 2021, eq. 12, sigma 0), guidance 3."""
    steps, total = FEW["sampler_steps"], model.num_train_timesteps
    concept, empty = encode_prompts(model, texts), unconditional(model, len(texts))
    seeds = [seed * 1_000_003**2 + i for i in range(len(texts))]
    x = torch.stack([torch.randn(4, 8, 8, generator=generator_for(s, "picture")) for s in seeds])
    states = []
    for i in reversed(range(int(steps))):
        t = i * (total // int(steps)) + 1
        states.append(x)
        without = noise(model, weights, x, t, empty)
        eps = without + 3.0 * (noise(model, weights, x, t, concept) - without)
        now, then = model.alphas_cumprod[t], model.alphas_cumprod[max(0, t - total // int(steps))]
        x = then.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - then).sqrt() * eps
    return states


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_loss_is_the_distance_to_the_own_prediction_without_text(kind: str) -> None:
    """States come from the teacher, which is where the adapter was; both predictions from the weights given."""
    model = tiny_model(kind)
    adapter = make_adapter(model.unet, "dense", SUBSET)
    nudge(adapter.parameters())
    teacher = {name: tensor.detach().clone() for name, tensor in adapter.parameters().items()}
    student = {name: (tensor + 0.1).requires_grad_(True) for name, tensor in teacher.items()}
    found = sdd(model, adapter, [Prompt("a ring", "ring")]).loss(model, student, batch_size=5, seed=1, step=0)

    states = guided_walk(model, teacher, ["a ring", "a ring"], seed=1)
    rng = generator_for(1, "sdd", 0)
    rows, stages = (torch.randint(n, (5,), generator=rng).tolist() for n in (2, 3))
    ring, empty, squares = encode_prompts(model, ["a ring"]), unconditional(model, 1), []
    plain = {name: tensor.detach() for name, tensor in student.items()}
    for row, stage in zip(rows, stages, strict=True):
        x, t = states[stage][row : row + 1], [667, 334, 1][stage]
        squares.append((noise(model, plain, x, t, ring) - noise(model, plain, x, t, empty)).square().detach())
    torch.testing.assert_close(found.detach(), torch.cat(squares).mean(), rtol=1e-4, atol=1e-6)


def test_no_gradient_flows_through_the_prediction_without_text() -> None:
    """With the text of the concept empty too, both predictions are the same and yet only one is pulled: at zero."""
    model = tiny_model("sd")
    adapter = make_adapter(model.unet, "dense", SUBSET)
    method = sdd(model, adapter, [Prompt("a ring", "ring")])
    theta = adapter.parameters()
    loss = method.loss(model, theta, 4, 0, 0)
    found = torch.autograd.grad(loss, list(theta.values()))
    rng = generator_for(0, "sdd", 0)
    rows, stages = (torch.randint(n, (4,), generator=rng) for n in (2, 3))
    x, t = method.teacher.states[rows, stages], method.teacher.timesteps[stages]
    ring, empty = encode_prompts(model, ["a ring"] * 4), unconditional(model, 4)
    target = model.unet(x, t, empty.embeds).sample.detach()
    predicted = torch.func.functional_call(model.unet, theta, (x, t, ring.embeds)).sample
    expected = torch.autograd.grad((predicted - target).square().mean(), list(theta.values()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_teacher_is_the_exponential_moving_average(decay: float) -> None:
    model = tiny_model("sd")
    adapter = make_adapter(model.unet, "lora", SUBSET, rank=2)
    method = sdd(model, adapter, decay=decay)
    theta = adapter.parameters()
    expected = {name: tensor.detach().double() for name, tensor in theta.items()}
    for step in range(5):
        nudge(theta, seed=step)
        method.after_step(theta)
        expected = {n: decay * e + (1 - decay) * theta[n].detach().double() for n, e in expected.items()}
    for name, tensor in method.teacher.theta.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    saved = method.result()
    assert saved is not None and saved.keys() == theta.keys()
    assert sdd(model, adapter, save="student").result() is None


def test_the_teacher_walks_only_when_it_is_time() -> None:
    model = tiny_model("sd")
    adapter = make_adapter(model.unet, "dense", SUBSET)
    method, theta = sdd(model, adapter), adapter.parameters()
    walks = []
    for step in range(5):
        method.loss(model, theta, 2, 0, step)
        walks.append(method.teacher.states)
    assert walks[0] is walks[1] and walks[2] is walks[3]
    assert not torch.equal(walks[0], walks[2]) and not torch.equal(walks[2], walks[4])


def test_concepts_are_what_prompts_show_or_what_is_listed() -> None:
    assert concept_groups(PROMPTS, []) == [["a ring", "a red ring"], ["a star"]]
    assert concept_groups(PROMPTS, ["nudity", "blood"]) == [["nudity"], ["blood"]]
    assert in_turn([["a", "b"], ["c"]], 5) == ["a", "c", "b", "c", "a"]
    assert in_turn([["a", "b", "c"]], 4) == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("way", "wanted"),
    [("iterative", ["ring", "star", "ring"]), ("composite", ["ring, star"] * 3), ("random", None)],
)
def test_several_concepts_take_turns_or_go_together(
    way: str, wanted: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states show all concepts at once; a step distils one of them, or their joined prompt."""
    model = tiny_model("sd")
    adapter = make_adapter(model.unet, "dense", SUBSET)
    method = sdd(model, adapter, [], concepts=["ring", "star"], concept_method=way, trajectories=1)
    sampled: list[list[str]] = []
    walk = method.teacher.walk_when_due
    monkeypatch.setattr(
        method.teacher, "walk_when_due", lambda texts, *rest: (sampled.append(texts), walk(texts, *rest))
    )
    seen: list[str] = []
    known = {text: encode_prompts(model, [text]).embeds[0] for text in ("ring", "star", "ring, star", "")}
    handle = model.unet.register_forward_pre_hook(
        lambda _, inputs: seen.append(min(known, key=lambda text: float((known[text] - inputs[2][0]).norm())))
    )
    steps = 3 if wanted else 20
    found = []
    for step in range(steps):
        method.loss(model, adapter.parameters(), 1, 0, step)
        found.append(seen[-1])  # the model's own predictions: without text, then with it
    handle.remove()
    assert all(texts == ["ring, star"] for texts in sampled)
    assert found == wanted if wanted else set(found) == {"ring", "star"}


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_run_stopped_after_any_step_resumes_to_the_same_bytes(last: int, tmp_path: Path) -> None:
    """Saved in the middle of a walk and between two, with the teacher that walked and the one that walks next."""
    model = tiny_model("sd")
    sets = tiny_sets(model)
    recipe = tiny_recipe(train={"save_every": 1, "steps": 5})

    def trainer(folder: Path) -> tuple[Trainer, Sdd, Adapter]:
        adapter = make_adapter(model.unet, "lora", SUBSET, rank=2)
        nudge(adapter.parameters())
        method = sdd(model, adapter)
        files = {"state_file": folder / "state.safetensors", "log_file": folder / "log.jsonl"}
        return Trainer(model, method, adapter, sets, recipe, **files), method, adapter

    class Killed(BaseException):
        pass

    def stop(step: int, _: dict[str, float]) -> None:
        if step == last:
            raise Killed

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, expected, _ = trainer(tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "parts")[0].run(stop)
    resumed, method, _ = trainer(tmp_path / "parts")
    resumed.run()
    for file in ("state.safetensors", "log.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    for name, tensor in method.teacher.theta.items():
        assert torch.equal(tensor, expected.teacher.theta[name])
        assert not torch.equal(tensor, resumed.theta[name]), "the teacher lags behind"
