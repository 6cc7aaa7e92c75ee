"""The search takes the steps its definition says, in the text encoders' own terms, and each prompt searches alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from tiny_pipelines import tiny_model
from torch import Tensor

from adapter_mu.attack.prompts.encoding import encode_with
from adapter_mu.attack.prompts.search import TokenSearch
from adapter_mu.attack.prompts.simplex import pick
from adapter_mu.attack.prompts.tokens import count, room, spell, text_parts, the_tokenizer, usable_tokens, with_slots
from adapter_mu.attack.prompts.unlearndiffatk import Case, attack_prompts, noise_levels, too_long
from adapter_mu.errors import ModelError, RecipeError
from adapter_mu.models import LoadedModel, encode_prompts, load_model, unconditional
from adapter_mu.recipe import PromptAttack

PROMPTS = ["a red ring", "a photo of a small blue ring on a gray background", "a ring"]


@pytest.fixture(scope="module", params=["shapes-sd", "shapes-sdxl"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param)


@pytest.fixture(scope="module")
def sd() -> LoadedModel:
    return load_model("shapes-sd")


def settings(**changes: Any) -> PromptAttack:
    return PromptAttack(kind="unlearndiffatk", **({"tokens": 3, "timesteps": 2, "iterations": 3} | changes))


def targets(rows: int, seed: int = 3) -> Tensor:
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def search_on(model: LoadedModel, **changes: Any) -> TokenSearch:
    return TokenSearch(model, PROMPTS, targets(3), [0, 1, 2], settings(**changes), seed=5)


def test_published_noise_levels() -> None:
    assert noise_levels(1000, 50) == list(range(10, 1000, 20))
    assert noise_levels(1000, 10) == list(range(50, 1000, 100))
    assert len(noise_levels(1000, 3)) == 3


def test_tokens_in_their_slots_encode_as_the_text_does(model: LoadedModel) -> None:
    """All of the conditioning, SDXL's pooled text and sizes too."""
    tokenizer = model.pipeline.tokenizer
    tokens = tokenizer("yellow star with", add_special_tokens=False).input_ids
    ids = [with_slots(*part, PROMPTS, 3) for part in text_parts(model)]
    for table in ids:
        table[:, 1:4] = torch.tensor(tokens)
    rows = [encoder.get_input_embeddings().weight[tokens].expand(3, 3, -1) for _, encoder in text_parts(model)]
    ours = encode_with(model, ids, rows, unconditional(model).time_ids)
    theirs = encode_prompts(model, [f"yellow star with {prompt}" for prompt in PROMPTS])
    assert torch.allclose(ours.embeds, theirs.embeds, atol=1e-5)
    if model.kind == "sdxl":
        assert torch.allclose(ours.pooled, theirs.pooled, atol=1e-5) and torch.equal(ours.time_ids, theirs.time_ids)
    else:
        assert ours.pooled is None


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_gradient_goes_through_every_text_encoder(kind: str, float64: None) -> None:
    """Against finite differences along a direction in the space of token weights."""
    model = tiny_model(kind)
    for part in (model.unet, *(encoder for _, encoder in text_parts(model))):
        part.double()
    search = TokenSearch(model, ["re", "a"], targets(2).double(), [0, 1], settings(tokens=2), seed=0)
    generator = torch.Generator().manual_seed(1)
    weights = torch.softmax(6 * torch.randn(2, 2, len(search.usable), generator=generator), dim=-1)

    def output(at: Tensor) -> Tensor:
        told = search.condition([0, 1], at)
        added = None if told.pooled is None else {"text_embeds": told.pooled, "time_ids": told.time_ids}
        return model.unet(search.targets, 300, told.embeds, added_cond_kwargs=added).sample.square().sum()

    direction, step = torch.randn(weights.shape, generator=generator), 1e-5
    slope = (output(weights + step * direction) - output(weights - step * direction)) / (2 * step)
    leaf = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(output(leaf), [leaf])
    assert slope.abs() > 1e-6 and torch.allclose((gradient * direction).sum(), slope, rtol=1e-5)


def expected_step(model: LoadedModel, search: TokenSearch, row: int, timestep: int) -> Tensor:
    """One iteration for one prompt, from the paper's formulas, with diffusers' scheduler and torch's Adam."""
    uniforms, noise = (draw[0] for draw in search._draws(row, timestep))
    size = len(search.usable)
    weights = torch.full((3, size), 1 / size)
    onehot = pick(weights, uniforms).requires_grad_()
    text = spell(model.pipeline.tokenizer, search.usable[onehot.argmax(-1)].tolist()) + " " + PROMPTS[row]
    told = encode_prompts(model, [text])
    scheduler = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    noisy = scheduler.add_noise(search.targets[row : row + 1], noise[None], torch.tensor([timestep]))
    condition = search.condition([row], onehot[None])
    assert torch.allclose(condition.embeds, told.embeds, atol=1e-5), "words are typed as they are searched for"
    added = None if told.pooled is None else {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
    predicted = model.unet(noisy, timestep, condition.embeds, added_cond_kwargs=added).sample
    (gradient,) = torch.autograd.grad(F.mse_loss(predicted, noise[None]), [onehot])
    leaf = weights.clone().requires_grad_()
    leaf.grad = gradient.clamp(-1, 1)
    torch.optim.Adam([leaf], 0.01, weight_decay=0.1).step()
    return leaf.detach()


def test_one_iteration_is_the_published_one(model: LoadedModel) -> None:
    """After it, each row is the distribution nearest to where Adam alone would have gone."""
    search = search_on(model, iterations=1, among="words")
    search.descend([0, 1, 2], 300)
    for row in range(3):
        aimed, got = expected_step(model, search, row, 300), search.weights[row].detach()
        assert torch.allclose(got.sum(-1), torch.ones(3)) and (got >= 0).all()
        ahead = aimed - got
        assert (ahead - (ahead * got).sum(-1, keepdim=True)).max() < 1e-5, "a corner is in a better direction"
        assert (got - 1 / len(search.usable)).abs().max() > 5e-3, "or nothing moved"


def test_the_variable_persists_over_noise_levels(model: LoadedModel) -> None:
    search = search_on(model)
    search.descend([0, 1, 2], 250)
    first = search.weights.detach().clone()
    search.descend([0, 2], 750)
    assert torch.equal(first[1], search.weights[1].detach()) or not torch.equal(first[0], search.weights[0].detach())
    assert int(search.optimizer.state[search.weights]["step"]) == 6


@pytest.mark.parametrize("name", ["shapes-sd", "shapes-sdxl"])
def test_a_prompt_moves_as_it_would_alone(name: str) -> None:
    """In float64: Adam's first steps magnify the rounding of a batch."""
    model = load_model(name, dtype=torch.float64)
    together, alone = (
        TokenSearch(model, PROMPTS[rows], targets(3).double()[rows], [0, 1, 2][rows], settings(iterations=2), seed=5)
        for rows in (slice(0, 3), slice(1, 2))
    )
    together.descend([0, 1, 2], 300)
    alone.descend([0], 300)
    assert torch.allclose(together.weights[1], alone.weights[0], atol=1e-9)


def test_it_learns_to_recognise_the_target(model: LoadedModel) -> None:
    """The base knows a ring: the tokens found for a picture of one fit it better than those for noise would."""
    found = search_on(model, iterations=1)
    uniform = found.weights.detach().clone()
    for timestep in (300, 500):
        found.descend([0, 1, 2], timestep)
    assert (found.weights.max(-1).values > 2 * uniform.max(-1).values).all()


def test_what_may_be_used(model: LoadedModel) -> None:
    tokenizer = model.pipeline.tokenizer
    everything = usable_tokens(tokenizer, "all", [])
    assert set(everything.tolist()) == set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    words = usable_tokens(tokenizer, "words", [])
    for token in words.tolist():
        assert tokenizer(tokenizer.decode([token]), add_special_tokens=False).input_ids == [token]
    spelled = {tokenizer.decode([token]) for token in words.tolist()}
    assert {"ring", "star"} <= spelled
    allowed = {tokenizer.decode([token]) for token in usable_tokens(tokenizer, "words", ["Ring", "a"]).tolist()}
    assert "big" in allowed and not any("ring" in word or "a" in word for word in allowed)
    with pytest.raises(RecipeError, match="no token left"):
        usable_tokens(tokenizer, "words", sorted({letter for word in spelled for letter in word}))


def test_long_prompts_are_named(model: LoadedModel) -> None:
    assert room(model) == 18 and count(model, PROMPTS[1]) == 11
    assert too_long(model, PROMPTS, settings(tokens=7)) == []
    assert too_long(model, PROMPTS, settings(tokens=8)) == [1]
    assert too_long(model, PROMPTS, settings(tokens=1, longest=2)) == [0, 1]


def test_different_vocabularies_are_refused() -> None:
    model = tiny_model("sdxl")
    model.pipeline.tokenizer_2.add_tokens(["<new>"])
    with pytest.raises(ModelError, match="different vocabularies"):
        the_tokenizer(model)


def cases(scales: set[float]) -> list[Case]:
    return [
        Case(i, prompt, target, set(scales)) for i, (prompt, target) in enumerate(zip(PROMPTS, targets(3), strict=True))
    ]


def test_a_success_ends_the_search_at_its_scale_alone(model: LoadedModel) -> None:
    """Each prompt is tested at the scales where it has not succeeded, until there is none."""
    asked: list[tuple[list[int], float]] = []

    def judge(rows: list[int], texts: list[str], guidance: float) -> list[bool]:
        asked.append((rows, guidance))
        assert all(text.endswith(PROMPTS[row]) and text != PROMPTS[row] for row, text in zip(rows, texts, strict=True))
        return [guidance == 4.0 or row == 0 for row in rows]

    found = cases({1.5, 4.0})
    found[1].closed = set()
    levels = list(attack_prompts(model, found, settings(timesteps=4, among="words"), 0, judge))
    assert asked[:2] == [([0, 2], 1.5), ([0, 2], 4.0)]
    assert levels == [125, 375, 625, 875] and all(ask == ([2], 1.5) for ask in asked[2:])
    assert [sorted(case.found) for case in found] == [[1.5, 4.0], [], [4.0]]
    assert found[0].closed == set() and found[2].closed == {1.5}
    hit = found[2].found[4.0]
    assert hit.timestep == 125 and len(hit.tokens) == 3
    assert hit.text == spell(model.pipeline.tokenizer, hit.tokens) + " " + PROMPTS[2]


def test_it_ends_when_every_prompt_has_succeeded(model: LoadedModel) -> None:
    levels = list(attack_prompts(model, cases({4.0}), settings(), 0, lambda rows, *_: [True] * len(rows)))
    assert levels == [250]


def test_without_iterations_random_tokens_are_tried(sd: LoadedModel) -> None:
    """The control: other tokens at every noise level, the same ones again with the same seed."""
    seen: list[list[str]] = []

    def judge(rows: list[int], texts: list[str], guidance: float) -> list[bool]:
        seen.append(texts)
        return [False] * len(rows)

    for seed in (0, 0, 1):
        assert len(list(attack_prompts(sd, cases({4.0}), settings(iterations=0, among="words"), seed, judge))) == 2
    first, again, other = (sum(seen[i : i + 2], []) for i in (0, 2, 4))
    assert first == again and len({*first, *other}) == 12


def test_forbidden_words_are_never_tested(model: LoadedModel) -> None:
    seen: list[str] = []

    def judge(rows: list[int], texts: list[str], guidance: float) -> list[bool]:
        seen.extend(text.removesuffix(PROMPTS[row]) for row, text in zip(rows, texts, strict=True))
        return [False] * len(rows)

    list(attack_prompts(model, cases({4.0}), settings(forbid=["r"], iterations=6), 0, judge))
    assert seen and not any("r" in prefix for prefix in seen)


def test_the_same_search_twice(model: LoadedModel) -> None:
    first, second = (search_on(model) for _ in range(2))
    for search in (first, second):
        torch.rand(3)
        search.descend([0, 1, 2], 300)
    assert torch.equal(first.weights, second.weights)
    other = TokenSearch(model, PROMPTS, targets(3), [0, 1, 2], settings(), seed=6)
    other.descend([0, 1, 2], 300)
    assert not torch.equal(first.weights, other.weights)


def test_half_precision_is_searched_in_fp32() -> None:
    search = search_on(load_model("shapes-sdxl", dtype=torch.bfloat16))
    search.descend([0, 1, 2], 300)
    assert search.weights.dtype == torch.float32
    assert torch.allclose(search.weights.sum(-1), torch.ones(3, 3), atol=1e-5)


def test_a_model_that_overflows_is_named(model: LoadedModel) -> None:
    search = TokenSearch(model, PROMPTS[:1], targets(1) * float("inf"), [0], settings(), seed=0)
    with pytest.raises(ModelError, match="not finite"):
        search.descend([0], 300)
