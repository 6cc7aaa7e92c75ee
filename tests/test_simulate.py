"""The meta objective on real pipelines: eq. 3 of the paper, written out again and differentiated by unrolling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cases import Case
from oracles import Rule, adamw_rule, relative_error, sgd_rule, unrolled
from tiny_pipelines import tiny_model
from tiny_runs import nudge, tiny_recipe, tiny_sets
from torch import Tensor

from adapter_mu.data.sets import Batch
from adapter_mu.models import LoadedModel, prepare_for_meta
from adapter_mu.params import Adapter, make_adapter
from adapter_mu.recipe import Meta
from adapter_mu.simulate import MetaObjective, Sets

pytestmark = pytest.mark.usefixtures("float64")

SEED, STEP, SIZE, TAU = 3, 5, 4, 0.05
SPACES = ("full", "subset", "adapter")
Tensors = dict[str, Tensor]


def meta(**changes: Any) -> Meta:
    """Different weights for every term, so that none can stand in for another."""
    attacker = {"lr": TAU, "steps": 1, "space": "full", "empty_captions": 0.5} | changes.pop("attacker", {})
    settings = {"weight": 1.0, "forget": 1.0, "related": 0.7, "unrelated": 0.3, "keep_unconditional": 2.0}
    recipe = tiny_recipe(meta=settings | changes | {"attacker": attacker})
    assert recipe.meta is not None
    return recipe.meta


class World:
    """One pipeline with an adapter away from its start, and eq. 3 on it in plain formulas."""

    def __init__(self, kind: str, adapter: str, **pipeline: Any) -> None:
        self.model: LoadedModel = tiny_model(kind, **pipeline)
        prepare_for_meta(self.model.unet)
        self.adapter: Adapter = make_adapter(self.model.unet, adapter, "cross_attention_kv", rank=2, alpha=4.0, seed=1)
        nudge(self.adapter.parameters())
        self.sets: Sets = tiny_sets(self.model)
        self.base = {name: p.detach().clone() for name, p in self.model.unet.named_parameters()}

    def objective(self, settings: Meta) -> MetaObjective:
        return MetaObjective(self.model, self.adapter, self.sets, settings, SIZE, SEED)

    def predict(self, weights: Mapping[str, Tensor], batch: Batch, condition: Any) -> Tensor:
        share = self.model.alphas_cumprod[batch.timesteps].reshape(-1, 1, 1, 1).double()
        x = share.sqrt() * batch.latents + (1 - share).sqrt() * batch.noise
        added = None if condition.pooled is None else {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
        inputs = {"sample": x, "timestep": batch.timesteps, "encoder_hidden_states": condition.embeds}
        output = torch.func.functional_call(
            self.model.unet, dict(weights), (), inputs | {"added_cond_kwargs": added}
        ).sample
        return output if self.model.prediction_type == "epsilon" else share.sqrt() * output + (1 - share).sqrt() * x

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """L_DM for epsilon-prediction."""
        return (self.predict(weights, batch, batch.condition) - batch.noise).square().mean()

    def batches(self, settings: Meta) -> tuple[list[Batch], dict[str, Batch]]:
        """The attacker's batches, and those of the outer loss."""
        draw, share = self.sets.forget.batch, settings.attacker.empty_captions
        inner = [draw(SIZE, SEED, STEP, f"attacker {m}", share) for m in range(settings.attacker.steps)]
        outer = {"forget": draw(SIZE, SEED, STEP, f"attacker {max(0, settings.attacker.steps - 1)}")}
        for name in ("related", "unrelated"):
            outer[name] = getattr(self.sets, name).batch(SIZE // 2, SEED, STEP, name)
        return inner, outer

    def equation_3(self, attacked: Tensors, current: Tensors, settings: Meta) -> Tensor:
        """-L(FT; forget) - zeta [L(FT; retain) - L(theta; retain)], and the term that keeps guidance intact."""
        _, outer = self.batches(settings)
        value = -settings.forget * self.loss(attacked, outer["forget"])
        for name in ("related", "unrelated"):
            difference = self.loss(attacked, outer[name]) - self.loss(current, outer[name])
            value = value - getattr(settings, name) * difference
        drifts = []
        for batch in outer.values():
            empty = self.sets.forget.empty.expand(len(batch.latents))
            drifts.append((self.predict(attacked, batch, empty) - self.predict(self.base, batch, empty)).square())
        return value + settings.keep_unconditional * torch.cat(drifts).mean()

    def lift(self, settings: Meta) -> Callable[[Tensors], Tensors]:
        """From theta to where the attacker begins."""
        if settings.attacker.space == "adapter":
            return dict
        if settings.attacker.space == "subset":
            return self.adapter.materialize
        return lambda theta: {
            **{n: p.clone().requires_grad_() for n, p in self.base.items()},
            **self.adapter.materialize(theta),
        }

    def unrolled(self, settings: Meta, rule: Rule) -> Tensors:
        """d eq. 3 / d theta by backpropagation through the whole attack."""
        in_adapter = settings.attacker.space == "adapter"

        def weights(params: Tensors) -> Tensors:
            return self.adapter.materialize(params) if in_adapter else params

        theta = self.adapter.parameters()
        # The term at theta does not pass through the attack; added to the outer loss, it is differentiated apart.
        constant = {name: tensor.detach() for name, tensor in theta.items()}
        case = Case(
            lambda params, batch: self.loss(weights(params), batch),
            lambda params: self.equation_3(weights(params), self.adapter.materialize(constant), settings),
            theta,
            self.batches(settings)[0],
        )
        through_attack, _ = unrolled(case, rule, lift=self.lift(settings))
        here = self.equation_3(self.base, self.adapter.materialize(theta), settings)
        direct = torch.autograd.grad(here, list(theta.values()))
        return {name: through_attack[name] + g for name, g in zip(theta, direct, strict=True)}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("adapter", ["dense", "lora"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_gradient_equals_unrolled_backpropagation_through_eq_3(kind: str, space: str, adapter: str, steps: int) -> None:
    world, settings = World(kind, adapter), meta(attacker={"space": space, "steps": steps})
    expected = world.unrolled(settings, sgd_rule(TAU))
    found, _ = world.objective(settings).gradient(STEP)
    assert relative_error(found, expected) <= 1e-10
    # The case would prove nothing if the second-order part were negligible.
    first, _ = world.objective(meta(order="first_order", attacker={"space": space, "steps": steps})).gradient(STEP)
    assert relative_error(first, expected) > 1e-4


def test_other_update_rules_reach_the_attacker() -> None:
    world, settings = World("sd", "lora"), meta(attacker={"rule": "adamw", "lr": 1e-3, "steps": 2})
    expected = world.unrolled(settings, adamw_rule(1e-3, 0.9, 0.999, 1e-8, 1e-2))
    assert relative_error(world.objective(settings).gradient(STEP)[0], expected) <= 1e-6


def test_v_prediction_keeps_noise_predictions_together() -> None:
    """The drift is measured on noise predictions, whatever the UNet is trained to predict."""
    world = World("sd", "dense", prediction_type="v_prediction")
    settings = meta(forget=0.0, related=0.0, unrelated=0.0, attacker={"space": "subset"})
    batch = world.batches(settings)[0][0]

    def v_loss(weights: Tensors) -> Tensor:
        share = world.model.alphas_cumprod[batch.timesteps].reshape(-1, 1, 1, 1).double()
        x = share.sqrt() * batch.latents + (1 - share).sqrt() * batch.noise
        v = (world.predict(weights, batch, batch.condition) - (1 - share).sqrt() * x) / share.sqrt()
        return (v - share.sqrt() * batch.noise + (1 - share).sqrt() * batch.latents).square().mean()

    case = Case(
        lambda params, _: v_loss(params),
        lambda params: world.equation_3(params, world.base, settings),
        world.adapter.parameters(),
        [batch],
    )
    expected, _ = unrolled(case, sgd_rule(TAU), lift=world.lift(settings))
    assert relative_error(world.objective(settings).gradient(STEP)[0], expected) <= 1e-8


@pytest.mark.parametrize("adapter", ["dense", "lora"])
@pytest.mark.parametrize("space", SPACES)
def test_without_attacker_steps_it_is_plain_ascent(space: str, adapter: str) -> None:
    """tau = 0: eq. 3 at theta itself, where the retain terms cancel."""
    world = World("sd", adapter)
    settings = meta(keep_unconditional=0.0, attacker={"space": space, "steps": 0, "required_drop": 0.5})
    theta, forget = world.adapter.parameters(), world.batches(settings)[1]["forget"]
    ascent = -world.loss(world.adapter.materialize(theta), forget)
    expected = dict(zip(theta, torch.autograd.grad(ascent, list(theta.values())), strict=True))
    found, log = world.objective(settings).gradient(STEP)
    assert relative_error(found, expected) <= 1e-10
    assert not [name for name in log if name.startswith("attacker_loss")]


def test_the_current_term_protects_what_the_attacked_term_gives_up() -> None:
    """Eq. 3's + zeta L(theta; retain): minimising it must lower the benign losses at theta."""
    world = World("sd", "dense")
    settings = meta(forget=0.0, unrelated=0.0, keep_unconditional=0.0, restore_related=0.7)
    outer = world.batches(settings)[1]["related"]
    with_term, log = world.objective(settings).gradient(STEP)
    without, _ = world.objective(settings.model_copy(update={"restore_related": 0.0})).gradient(STEP)
    theta = world.adapter.parameters()
    loss = world.loss(world.adapter.materialize(theta), outer)
    slope = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    difference = {name: with_term[name] - without[name] for name in theta}
    assert relative_error(difference, {name: 0.7 * g for name, g in slope.items()}) <= 1e-10
    assert log["restore_related"] == pytest.approx(0.7 * float(loss.detach())) and log["destroy_related"] < 0


def test_terms_that_restore_can_stand_alone_and_be_left_out() -> None:
    world = World("sd", "dense")
    _, log = world.objective(meta(related=0.0, unrelated=0.0, restore_unrelated=0.4)).gradient(STEP)
    assert "restore_unrelated" in log and "restore_related" not in log and "destroy_related" not in log
    _, log = world.objective(meta(restore_related=0.0, restore_unrelated=0.0)).gradient(STEP)
    assert not [name for name in log if name.startswith("restore")] and log["destroy_related"] < 0


def test_every_term_is_logged_by_name_and_adds_up() -> None:
    world, settings = World("sd", "dense"), meta(attacker={"steps": 2})
    _, log = world.objective(settings).gradient(STEP)
    assert log.keys() == {
        *("tau", "attacker_loss_0", "attacker_loss_1"),
        *(f"attacked_{name}" for name in ("forget", "related", "unrelated", "keep_unconditional")),
        *("ascend_forget", "destroy_related", "destroy_unrelated", "keep_unconditional"),
        *("restore_related", "restore_unrelated"),
    }
    inner, outer = world.batches(settings)
    start = world.lift(settings)(world.adapter.parameters())
    gradient = torch.autograd.grad(
        world.loss(start, inner[0]), list(start.values()), materialize_grads=True, allow_unused=True
    )
    moved = {name: p - TAU * g for (name, p), g in zip(start.items(), gradient, strict=True)}
    assert log["tau"] == TAU and log["attacker_loss_0"] == pytest.approx(float(world.loss(start, inner[0]).detach()))
    assert log["attacker_loss_1"] == pytest.approx(float(world.loss(moved, inner[1]).detach()))
    assert log["ascend_forget"] == -log["attacked_forget"]
    assert log["restore_related"] == pytest.approx(0.7 * float(world.loss(start, outer["related"]).detach()))


def test_the_outer_loss_sees_the_attackers_last_batch_with_its_captions() -> None:
    world, settings = World("sd", "dense"), meta(attacker={"empty_captions": 1.0, "steps": 2})
    inner, outer = world.batches(settings)
    assert torch.equal(inner[1].noise, outer["forget"].noise) and torch.equal(inner[1].latents, outer["forget"].latents)
    empty = world.sets.forget.empty.embeds
    assert torch.equal(inner[1].condition.embeds, empty.expand(SIZE, -1, -1))
    assert not (outer["forget"].condition.embeds == empty).flatten(1).all(1).any()


def test_tau_shrinks_until_the_attackers_loss_falls() -> None:
    world, settings = World("sd", "dense"), meta(attacker={"lr": 2.0, "required_drop": 0.05})
    found, log = world.objective(settings).gradient(STEP)
    inner, start = world.batches(settings)[0][0], world.lift(settings)(world.adapter.parameters())
    before = world.loss(start, inner)
    gradient = torch.autograd.grad(before, list(start.values()), materialize_grads=True, allow_unused=True)

    def kept(tau: float) -> float:
        moved = {name: p - tau * g for (name, p), g in zip(start.items(), gradient, strict=True)}
        return float(world.loss(moved, inner).detach() / before.detach())

    assert log["tau"] == 0.25 and kept(0.25) <= 0.95 < kept(0.5)
    constant, _ = world.objective(meta(attacker={"lr": 0.25})).gradient(STEP)
    assert relative_error(found, constant) == 0


def test_it_depends_on_seed_and_step_only_and_changes_nothing() -> None:
    world = World("sd", "lora")
    objective, theta = world.objective(meta()), world.adapter.parameters()
    before = {name: tensor.detach().clone() for name, tensor in theta.items()}
    first, log = objective.gradient(STEP)
    torch.manual_seed(1)
    objective.gradient(STEP + 1)
    again, log_again = objective.gradient(STEP)
    assert relative_error(again, first) == 0 and log_again == log
    assert all(torch.equal(theta[name], before[name]) and theta[name].grad is None for name in theta)
    assert all(torch.equal(p, world.base[name]) for name, p in world.model.unet.named_parameters())
    assert relative_error(objective.gradient(STEP + 1)[0], first) > 0.1
