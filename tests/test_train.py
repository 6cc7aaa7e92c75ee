"""The outer loop: what a step does, that a resumed run ends in the same bytes, and that it stops at a NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_model
from tiny_runs import nudge, tiny_recipe, tiny_sets
from torch import Tensor

from adapter_mu.data.prompts import Prompt
from adapter_mu.data.seeds import generator_for
from adapter_mu.errors import UserError
from adapter_mu.models import LoadedModel, prepare_for_meta
from adapter_mu.params import Adapter, make_adapter
from adapter_mu.recipe import merged
from adapter_mu.simulate import MetaObjective, Sets, batch_loss
from adapter_mu.train import Trainer

META = {"weight": 0.5, "attacker": {"lr": 0.01, "space": "adapter"}, "max_grad_norm": 0.1, "order": "first_order"}
STEPS, SAVE_EVERY = 4, 2


class Toy:
    """Weights should be where a draw of the step says; stands in for ESD."""

    def __init__(self, nan_at: int = -1) -> None:
        self.nan_at = nan_at

    def prepare(self, model: LoadedModel, base_hash: str, prompts: list[Prompt], folder: Path) -> None:
        """Nothing."""

    def loss(self, model: LoadedModel, params: Mapping[str, Tensor], batch_size: int, seed: int, step: int) -> Tensor:
        goal = 0.3 + 0.01 * float(torch.randn((), generator=generator_for(seed, "toy", step)))
        distance = torch.stack([(tensor - goal).square().mean() for tensor in params.values()]).mean()
        return distance * (float("nan") if step == self.nan_at else 1.0)


class Setting:
    """Files of one run; each `trainer` is a new process that finds them."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.model = MODEL
        self.state, self.log = folder / "state.safetensors", folder / "log.jsonl"
        train = {"steps": STEPS, "save_every": SAVE_EVERY, "retain_related": 0.2, "retain_unrelated": 0.3}
        self.recipe = tiny_recipe(**merged({"meta": META, "train": train}, changes))

    def trainer(self, method: Toy | None = None) -> Trainer:
        adapter: Adapter = make_adapter(self.model.unet, "lora", "cross_attention_kv", rank=2, seed=1)
        return Trainer(
            self.model, method or Toy(), adapter, SETS, self.recipe, state_file=self.state, log_file=self.log
        )

    def lines(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


MODEL = tiny_model("sd")
prepare_for_meta(MODEL.unet)
SETS: Sets = tiny_sets(MODEL)


class Killed(BaseException):
    """A kill, as far as a test can have one."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    setting = Setting(tmp_path_factory.mktemp("whole"))
    setting.trainer().run()
    return setting


@pytest.mark.parametrize("last", range(STEPS))
def test_a_run_stopped_after_any_step_resumes_to_the_same_bytes(last: int, tmp_path: Path, finished: Setting) -> None:
    setting = Setting(tmp_path)

    def stop(step: int, _: dict[str, float]) -> None:
        if step == last:
            raise Killed

    with pytest.raises(Killed):
        setting.trainer().run(stop)
    assert len(setting.lines()) == last + 1
    torch.manual_seed(last)
    resumed = setting.trainer()
    resumed.run()
    assert setting.state.read_bytes() == finished.state.read_bytes()
    assert setting.log.read_bytes() == finished.log.read_bytes()
    again = setting.trainer()
    again.run(stop)  # nothing is left to do
    for name, tensor in again.theta.items():
        assert torch.equal(tensor, resumed.theta[name])
    assert setting.log.read_bytes() == finished.log.read_bytes()


@pytest.mark.parametrize("where", ["before the state is saved", "in the middle of a line"])
def test_a_run_killed_between_its_files_resumes_to_the_same_bytes(
    where: str, tmp_path: Path, finished: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path)

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("adapter_mu.train.write_tensors", dies)
        setting.trainer().run()
    if where == "in the middle of a line":
        setting.log.write_text(setting.log.read_text()[:-40])
    setting.trainer().run()
    assert setting.state.read_bytes() == finished.state.read_bytes()
    assert setting.log.read_bytes() == finished.log.read_bytes()


def test_the_loss_falls(tmp_path: Path) -> None:
    setting = Setting(tmp_path, meta=None, train={"steps": 60, "lr": 0.02, "retain_related": 0, "retain_unrelated": 0})
    setting.trainer().run()
    losses = [line["unlearn"] for line in setting.lines()]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_every_term_is_logged_by_name(finished: Setting) -> None:
    lines = finished.lines()
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(line.keys() == lines[0].keys() for line in lines)
    assert lines[0].keys() == {
        *("step", "unlearn", "retain_related", "retain_unrelated", "meta_gradient_norm", "gradient_norm"),
        *("tau", "attacker_loss_0", "attacked_forget", "attacked_related", "attacked_unrelated"),
        *("ascend_forget", "destroy_related", "destroy_unrelated", "restore_related", "restore_unrelated"),
        *("gradient_alignment", "gradient_cosine"),
    }


def test_a_term_without_weight_is_not_computed(tmp_path: Path) -> None:
    setting = Setting(tmp_path, meta=None, train={"retain_related": 0.0})
    assert setting.trainer().step(0).keys() == {"unlearn", "retain_unrelated", "gradient_norm"}


@pytest.mark.parametrize("largest", [0.01, 1e6])
def test_a_step_is_adam_on_the_clipped_sum_of_weighted_gradients(largest: float, tmp_path: Path) -> None:
    """Algorithm 1, line 11, with clips: of the meta gradient before it is weighted, and of the whole."""
    meta = META | {"max_grad_norm": largest}
    setting = Setting(tmp_path, meta=meta, train={"unlearn_weight": 2.0, "max_grad_norm": largest})
    trainer, train = setting.trainer(), setting.recipe.train
    nudge(trainer.theta)
    theta = {name: tensor.detach().clone() for name, tensor in trainer.theta.items()}
    assert setting.recipe.meta is not None

    weights = trainer.adapter.materialize(trainer.theta)
    batches = SETS.retain_batches(train.batch_size, 0, 3)
    unlearning = Toy().loss(MODEL, weights, train.batch_size, 0, 3)
    alone = torch.autograd.grad(unlearning, list(trainer.theta.values()), retain_graph=True)
    loss = 2.0 * unlearning
    loss = loss + 0.2 * batch_loss(MODEL, weights, batches["related"])
    loss = loss + 0.3 * batch_loss(MODEL, weights, batches["unrelated"])
    plain = torch.autograd.grad(loss, list(trainer.theta.values()))
    objective = MetaObjective(MODEL, trainer.adapter, SETS, setting.recipe.meta, train.batch_size, 0)
    ascent = list(objective.gradient(3)[0].values())

    def clipped(gradients: list[Tensor]) -> list[Tensor]:
        length = torch.cat([g.flatten() for g in gradients]).norm()
        return [g * min(1.0, largest / float(length)) for g in gradients]

    whole = [p + 0.5 * a for p, a in zip(plain, clipped(ascent), strict=True)]
    terms = trainer.step(3)
    assert terms["gradient_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in whole]).norm()), rel=1e-5)
    for (name, before), gradient in zip(theta.items(), clipped(whole), strict=True):
        moment = trainer.optimizer.state[trainer.theta[name]]["exp_avg"]
        torch.testing.assert_close(moment, 0.1 * gradient, atol=1e-7, rtol=1e-4)
        # Adam's first step: after bias correction the moments are the gradient and its square.
        expected = before - train.lr * 10 * moment / (10 * moment.abs() + 1e-8)
        torch.testing.assert_close(trainer.theta[name].detach(), expected)
    assert terms["unlearn"] == pytest.approx(float(Toy().loss(MODEL, weights, 1, 0, 3).detach()))
    ours, theirs = (torch.cat([g.flatten() for g in part]).double() for part in (alone, ascent))
    assert terms["gradient_alignment"] == pytest.approx(float(ours @ theirs), rel=1e-3)
    assert terms["gradient_cosine"] == pytest.approx(float(ours @ theirs / ours.norm() / theirs.norm()), rel=1e-3)


def test_what_has_unlearned_already_is_trained_without_an_unlearning_loss(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    trainer = setting.trainer()
    trainer.method = None
    terms = trainer.step(0)
    assert terms["meta_gradient_norm"] > 0 and not terms.keys() & {"unlearn", "gradient_alignment", "gradient_cosine"}


def test_a_step_depends_on_its_number_and_the_state_only(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    first, second = setting.trainer(), setting.trainer()
    torch.manual_seed(5)
    assert first.step(7) == second.step(7) != setting.trainer().step(8)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_good_steps(
    at: int, tmp_path: Path, finished: Setting
) -> None:
    setting = Setting(tmp_path)
    with pytest.raises(UserError) as caught:
        setting.trainer(Toy(nan_at=at)).run()
    sentence = str(caught.value)
    assert f"step {at}" in sentence and "unlearn, gradient_norm" in sentence and "lower train.lr" in sentence
    assert "\n" not in sentence and "attacked_forget" not in sentence
    if at:
        assert [line["step"] for line in setting.lines()] == list(range(at))
        assert all(tensor.isfinite().all() for tensor in setting.trainer().theta.values())
    resumed = setting.trainer()  # as if the cause were gone
    resumed.run()
    assert setting.state.read_bytes() == finished.state.read_bytes()
    assert setting.log.read_bytes() == finished.log.read_bytes()
    assert all(tensor.isfinite().all() for tensor in resumed.theta.values())


def test_a_meta_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path)
    trainer = setting.trainer()
    before = {name: tensor.detach().clone() for name, tensor in trainer.theta.items()}
    endless = {name: torch.full_like(tensor, float("inf")) for name, tensor in before.items()}
    monkeypatch.setattr(MetaObjective, "gradient", lambda self, step: (endless, {"tau": 0.01}))
    with pytest.raises(UserError, match="meta_gradient_norm, gradient_norm"):
        trainer.run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.theta.items())
    assert not setting.state.exists()
