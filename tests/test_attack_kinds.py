"""Each kind of finetune moves what it should and nothing else, in the way its definition says."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_model
from tiny_runs import tiny_set
from torch import Tensor, nn

import adapter_mu.attack.finetune as finetuning
from adapter_mu.attack.check import check_attack, check_attack_fits
from adapter_mu.attack.finetune import finetune
from adapter_mu.attack.pictures import captioned, joined
from adapter_mu.attack.token import WithRows
from adapter_mu.data.sampling import sample_latents
from adapter_mu.data.sets import Batch, LatentSet
from adapter_mu.errors import RecipeError
from adapter_mu.models import LoadedModel, diffusion_loss, encode_prompts
from adapter_mu.recipe import Attack, Prompts, Swap, parse

SEED = 3
SWAP = Swap(word="ring", new="<x>")
CAPTIONS = ["a ring", "a red ring", "small"]
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "cross_attention": {},
    "lora": {"rank": 2, "alpha": 6.0},
    "dreambooth": {"prior": Prompts(prompts=["a star"], images=1)},
    "textual_inversion": {"placeholder": "<x>", "vectors": 2},
}
Weights = dict[str, Tensor]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def sd() -> LoadedModel:
    return tiny_model("sd")


def attack(kind: str, **changes: Any) -> Attack:
    standard = {"lr": 1e-2, "batch_size": 2, "steps": [2], "empty_captions": 0.5, "weight_decay": 0.1}
    return Attack(kind=kind, data=Prompts(prompts=["a ring"], images=1), **(standard | KINDS[kind] | changes))


def parts(model: LoadedModel) -> Weights:
    """Every parameter of UNet, VAE and text encoders, copied."""
    modules = {name: part for name, part in model.pipeline.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": w.detach().clone() for name, m in modules.items() for key, w in m.named_parameters()}


def attacked(model: LoadedModel, settings: Attack, seed: int = SEED, at: int | None = None) -> Weights:
    """All parameters after the attack, or after step `at` of it."""
    prior = tiny_set(model, ["a star", "a cross"], seed=1) if settings.prior else None
    found: dict[int, Weights] = {}

    def keep(step: int, result: LoadedModel) -> None:
        found[step] = parts(result)

    finetune(model, tiny_set(model, CAPTIONS), settings, seed, keep, prior=prior, swap=SWAP)
    return found[at or max(settings.steps)]


def moved(model: LoadedModel, after: Weights) -> set[str]:
    """Parameters that are new or not what they were; adapters keep their layer as `base_layer`."""
    before = parts(model)
    plain = {name.replace(".base_layer", "").replace(".frozen", ""): weight for name, weight in after.items()}
    return {name for name, weight in plain.items() if name not in before or not torch.equal(weight, before[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_moves_what_it_should(kind: str, model: LoadedModel) -> None:
    names, change = set(parts(model)), moved(model, attacked(model, attack(kind)))
    unet = {name for name in names if name.startswith("unet.")}
    if kind in ("full", "dreambooth"):
        assert change == unet
    elif kind == "cross_attention":
        assert change == {name for name in unet if ".attn2." in name}
    elif kind == "lora":
        owners = {name.rpartition(".lora_")[0] for name in change}
        targets = ("to_q", "to_k", "to_v", "to_out.0")
        expected = {name.removesuffix(".weight") for name in unet if name.removesuffix(".weight").endswith(targets)}
        assert owners == expected and all(".lora_A." in name or ".lora_B." in name for name in change)
    else:
        encoders = ["text_encoder", "text_encoder_2"][: 1 + (model.kind == "sdxl")]
        assert {name.partition(".")[0] for name in change} == set(encoders)
        assert all(name.endswith("token_embedding.rows") for name in change) and len(change) == len(encoders)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_given_is_left_alone(kind: str, model: LoadedModel) -> None:
    before, processors = parts(model), dict(model.unet.attn_processors)
    attacked(model, attack(kind, checkpointing=True))
    assert parts(model).keys() == before.keys() and not moved(model, before)
    assert model.unet.attn_processors == processors and not model.unet.is_gradient_checkpointing
    assert "<x>" not in model.pipeline.tokenizer.get_vocab()
    assert not any(w.requires_grad for w in model.unet.parameters()) and not model.unet.training


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_attack_twice_is_the_same(kind: str, model: LoadedModel) -> None:
    """Bit for bit, whatever else draws random numbers; another seed is another attack."""
    first = attacked(model, attack(kind))
    torch.randn(5)
    second, other = attacked(model, attack(kind)), attacked(model, attack(kind), seed=SEED + 1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_points_along_the_way_are_those_of_shorter_attacks(kind: str, sd: LoadedModel) -> None:
    """No restart between points, and looking changes nothing."""
    short, whole = attacked(sd, attack(kind, steps=[1])), attack(kind, steps=[3, 1, 2])
    passing, end = attacked(sd, whole, at=1), attacked(sd, whole)
    alone = attacked(sd, attack(kind, steps=[3]))
    assert all(torch.equal(short[name], passing[name]) for name in short)
    assert all(torch.equal(alone[name], end[name]) for name in alone)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_recomputed_activations_change_nothing(kind: str, sd: LoadedModel) -> None:
    plain, recomputed = attacked(sd, attack(kind)), attacked(sd, attack(kind, checkpointing=True))
    for name, weight in plain.items():
        torch.testing.assert_close(recomputed[name], weight, rtol=1e-4, atol=1e-6)


def test_a_lora_starts_at_the_base_and_counts_alpha_over_rank(sd: LoadedModel) -> None:
    """Its result is the base with alpha / rank B A added to the layers."""
    settings = attack("lora", lr=1e-3)
    results: list[LoadedModel] = []
    finetune(sd, tiny_set(sd, CAPTIONS), settings, SEED, lambda _, result: results.append(result))
    state, unet = results[0].unet.state_dict(), copy.deepcopy(sd.unet)
    with torch.no_grad():
        for name, layer in unet.named_modules():
            if f"{name}.lora_A.default.weight" in state:
                a, b = (state[f"{name}.lora_{part}.default.weight"] for part in "AB")
                assert (a.shape[0], a.dtype) == (2, torch.float32)
                layer.weight += 6.0 / 2 * b @ a
        batch = tiny_set(sd, CAPTIONS).batch(3, 0, 0, "test")
        arguments = (batch.latents, batch.timesteps, batch.condition.embeds)
        torch.testing.assert_close(results[0].unet(*arguments).sample, unet(*arguments).sample, rtol=1e-4, atol=1e-5)


def test_adapters_are_fp32_beside_a_bf16_base_that_keeps_its_dtype() -> None:
    model = tiny_model("sd")
    model.pipeline.to(torch.bfloat16)
    results: list[LoadedModel] = []
    finetune(model, tiny_set(model, CAPTIONS), attack("lora"), SEED, lambda _, result: results.append(result))
    kinds = {name: weight.dtype for name, weight in results[0].unet.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    assert sample_latents(results[0], ["a"], [0], steps=1, guidance=3.0, batch_size=1).isfinite().all()


def test_a_half_precision_base_is_trained_in_fp32_and_stays_what_it_is() -> None:
    model = tiny_model("sd")
    model.pipeline.to(torch.float16)
    trained: set[torch.dtype] = set()
    results: list[LoadedModel] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "diffusion_loss", lambda m, *a: trained.add(m.dtype) or diffusion_loss(m, *a))
        finetune(model, tiny_set(model, CAPTIONS), attack("lora"), SEED, lambda _, result: results.append(result))
    assert trained == {torch.float32} and results[0].dtype == model.dtype == torch.float16
    assert {weight.dtype for weight in results[0].unet.parameters()} == {torch.float16}
    with pytest.raises(RecipeError, match="vanish in fp16"):
        check_attack_fits("mine", attack("textual_inversion"), model)


def loss(model: LoadedModel, unet: nn.Module, batch: Batch) -> Tensor:
    from adapter_mu.models import with_unet

    inputs = (batch.latents, batch.noise, batch.timesteps, batch.condition)
    return diffusion_loss(with_unet(model, unet), None, *inputs)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_prior_preservation_is_its_formula(weight: float, sd: LoadedModel) -> None:
    """One SGD step on L(pictures) + weight L(class pictures), from one graph, without clipping or decay."""
    data, prior = tiny_set(sd, CAPTIONS), tiny_set(sd, ["a star", "a cross"], seed=1)
    plain = {"optimizer": "sgd", "lr": 0.1, "steps": [1], "weight_decay": 0.0, "max_grad_norm": 1e9}
    settings = attack("dreambooth", prior_weight=weight, **plain)
    found: list[LoadedModel] = []
    finetune(sd, data, settings, SEED, lambda _, result: found.append(result), prior=prior)

    unet = copy.deepcopy(sd.unet).requires_grad_(True)
    batches = [d.batch(2, SEED, 1, stream, 0.5) for d, stream in ((data, "attack"), (prior, "prior"))]
    (loss(sd, unet, batches[0]) + weight * loss(sd, unet, batches[1])).backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            found[0].unet.get_parameter(name), parameter.detach() - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6
        )


def stepped(model: LoadedModel, settings: Attack, make: Any) -> tuple[Weights, Weights]:
    """Two steps by the attack, and by another optimizer on the same batches."""
    data = tiny_set(model, CAPTIONS)
    unet = copy.deepcopy(model.unet).requires_grad_(True)
    optimizer = make(unet.parameters())
    for step in (1, 2):
        optimizer.zero_grad()
        loss(model, unet, data.batch(2, SEED, step, "attack", 0.5)).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), settings.max_grad_norm)
        optimizer.step()
    ours = {name: weight for name, weight in attacked(model, settings).items() if name.startswith("unet.")}
    return ours, {f"unet.{name}": weight.detach() for name, weight in unet.named_parameters()}


def test_sgd_is_torchs(sd: LoadedModel) -> None:
    settings = attack("full", optimizer="sgd", lr=0.1, momentum=0.9)
    ours, theirs = stepped(sd, settings, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6)


def test_eight_bit_adamw_is_bitsandbytes(sd: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is asked for by its names (a stand-in here: it is not installed everywhere)."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = torch.optim.RAdam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    settings = attack("full", optimizer="adamw8bit")
    ours, theirs = stepped(sd, settings, lambda p: torch.optim.RAdam(p, lr=1e-2, weight_decay=0.1))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)


def learned(model: LoadedModel, **changes: Any) -> LoadedModel:
    found: list[LoadedModel] = []
    settings = attack("textual_inversion", **changes)
    finetune(model, tiny_set(model, CAPTIONS), settings, SEED, lambda _, result: found.append(result), swap=SWAP)
    return found[0]


def test_a_learned_token_reads_as_one_that_was_added_the_usual_way(model: LoadedModel) -> None:
    """transformers' own way: tokens added, embeddings resized, rows set; other prompts read as before."""
    result, other = learned(model), copy.deepcopy(model.pipeline)
    for suffix in ("", "_2")[: 1 + (model.kind == "sdxl")]:
        tokenizer, encoder = getattr(other, f"tokenizer{suffix}"), getattr(other, f"text_encoder{suffix}")
        embedding = getattr(result.pipeline, f"text_encoder{suffix}").get_input_embeddings()
        assert isinstance(embedding, WithRows) and embedding.rows.shape[0] == 2
        tokenizer.add_tokens(["<x>", "<x>_1"])
        encoder.resize_token_embeddings(len(tokenizer))
        with torch.no_grad():
            encoder.get_input_embeddings().weight[-2:] = embedding.rows
    usual = LoadedModel(model.kind, other, "usual", "memory")
    for prompts in (["a <x> b", "<x>"], ["a ring", ""]):
        ours, theirs = encode_prompts(result, prompts), encode_prompts(usual, prompts)
        torch.testing.assert_close(ours.embeds, theirs.embeds)
        if ours.pooled is not None and theirs.pooled is not None:
            torch.testing.assert_close(ours.pooled, theirs.pooled)
    torch.testing.assert_close(encode_prompts(result, ["a ring"]).embeds, encode_prompts(model, ["a ring"]).embeds)


def test_published_sdxl_encoders_pool_at_the_end_and_not_at_the_token() -> None:
    """Their configuration says end-of-text is 2, on which CLIP pools at the highest number: the new token's."""
    model = tiny_model("sdxl")
    model.pipeline.text_encoder_2.text_model.eos_token_id = 2
    pooled = encode_prompts(model, ["a ring"]).pooled
    result = learned(model, lr=1e-12)
    assert torch.equal(encode_prompts(result, ["a ring"]).pooled, pooled)
    ends = encode_prompts(result, ["<x> a", "<x> a b"]).pooled
    assert ends is not None and not torch.equal(ends[0], ends[1]), "what follows the token is read"


def test_the_initializer_is_where_the_token_starts(sd: LoadedModel) -> None:
    numbers = sd.pipeline.tokenizer("ring", add_special_tokens=False).input_ids
    rows = sd.pipeline.text_encoder.get_input_embeddings().weight
    for word, expected in (("ring", rows[numbers].mean(0)), ("", rows.mean(0))):
        found = learned(sd, initializer=word, lr=1e-12).pipeline.text_encoder.get_input_embeddings().rows
        torch.testing.assert_close(found, expected.expand(2, -1), rtol=1e-5, atol=1e-7)


def test_mixed_data_is_drawn_from_evenly(sd: LoadedModel) -> None:
    both = joined(tiny_set(sd, CAPTIONS), tiny_set(sd, ["a star", "a cross", "a square"], seed=1))
    rows = torch.cat([both.draw(8, SEED, step, "attack")[0] for step in range(100)])
    assert len(both.latents) == len(both.captions) == len(both.condition) == 6
    assert 0.4 < (rows < 3).float().mean() < 0.6


def test_one_caption_for_all(sd: LoadedModel) -> None:
    data: LatentSet = captioned(tiny_set(sd, CAPTIONS), "a photo of a ring").encoded_by(sd)
    expected = encode_prompts(sd, ["a photo of a ring"]).embeds
    assert data.captions == ["a photo of a ring"] * 3
    torch.testing.assert_close(data.condition.embeds, expected.expand(3, -1, -1))
    assert captioned(data, "") == data


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "adamw8bit"}, "pip install bitsandbytes"),
        ({"attention": "xformers"}, "pip install xformers"),
        ({"steps": []}, "must list step counts"),
        ({"steps": [0, 5]}, "must list step counts"),
        ({"seeds": [1, 1]}, "names a seed twice"),
    ],
)
def test_what_an_attack_lacks_is_said_before_it_starts(
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapter_mu.attack.check.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=said):
        check_attack("mine", attack("full", **changes))
    check_attack("mine", attack("full"))


def test_a_model_without_the_layers_or_with_the_token_is_refused(sd: LoadedModel) -> None:
    with pytest.raises(RecipeError, match=r"'mine': no layer of the UNet ends in 'to_z'"):
        check_attack_fits("mine", attack("lora", targets=["to_q", "to_z"]), sd)
    with pytest.raises(RecipeError, match="already knows 'a'"):
        check_attack_fits("mine", attack("textual_inversion", placeholder="a"), sd)
    for kind in KINDS:
        check_attack_fits("mine", attack(kind), sd)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"rank": 8}, "`rank` does nothing with kind full"),
        ({"kind": "cross_attention", "vectors": 2}, "`vectors` does nothing with kind cross_attention"),
        ({"kind": "dreambooth"}, "dreambooth needs `prior`"),
        ({"momentum": 0.9}, "`momentum` is sgd's"),
        ({"kind": "textual_inversion", "placeholder": "two words"}, "attacks.mine.placeholder"),
        ({"kind": "loar"}, "attacks.mine.kind"),
        ({"optimizer": "lion"}, "attacks.mine.optimizer"),
        ({"lr": 0}, "attacks.mine.lr"),
    ],
)
def test_settings_that_do_nothing_are_refused(entry: dict[str, Any], said: str) -> None:
    from tiny_runs import RECIPE

    whole = {"data": {"prompts": ["a ring"], "images": 1}} | entry
    with pytest.raises(RecipeError) as caught:
        parse(RECIPE | {"attacks": {"mine": whole}}, "recipe tiny")
    assert said in str(caught.value) and "\n" not in str(caught.value)
