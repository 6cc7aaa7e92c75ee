"""Conditioning is exactly what the diffusers pipelines feed their UNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import tiny_model
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.models import Conditioning, LoadedModel, encode_prompts, predict_noise, unconditional

PROMPTS = ["a red ring", "", "three squares on a very long wall of bricks and more bricks"]
KINDS: dict[str, dict[str, Any]] = {
    "sd": {"kind": "sd"},
    "sdxl zeros": {"kind": "sdxl", "force_zeros": True},
    "sdxl empty": {"kind": "sdxl", "force_zeros": False},
}


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_model(**KINDS[request.param])


def call(model: LoadedModel, **inputs: Any) -> tuple[Tensor, list[dict[str, Any]]]:
    """Final latents of a two-step guided pipeline call, and what the UNet was given and answered at each step."""
    seen: list[dict[str, Any]] = []

    def record(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor]) -> None:
        seen.append({"x": args[0], "t": args[1], "output": output[0], **kwargs})

    hook = model.unet.register_forward_hook(record, with_kwargs=True)
    generator = torch.Generator().manual_seed(3)
    latents = model.pipeline(
        **inputs, num_inference_steps=2, guidance_scale=4.0, generator=generator, output_type="latent"
    ).images
    hook.remove()
    return latents, seen


def test_pipeline_called_with_our_embeddings_equals_one_called_with_prompts(model: LoadedModel) -> None:
    cond, empty = encode_prompts(model, PROMPTS), unconditional(model, len(PROMPTS))
    inputs = {"prompt_embeds": cond.embeds, "negative_prompt_embeds": empty.embeds}
    if model.kind == "sdxl":
        inputs |= {"pooled_prompt_embeds": cond.pooled, "negative_pooled_prompt_embeds": empty.pooled}
    torch.testing.assert_close(call(model, **inputs)[0], call(model, prompt=PROMPTS)[0])


def test_one_denoising_step_equals_the_pipelines(model: LoadedModel) -> None:
    _, seen = call(model, prompt=PROMPTS)
    cond = Conditioning.cat([unconditional(model, len(PROMPTS)), encode_prompts(model, PROMPTS)])
    for step in seen:
        torch.testing.assert_close(cond.embeds, step["encoder_hidden_states"])
        if model.kind == "sdxl":
            torch.testing.assert_close(cond.pooled, step["added_cond_kwargs"]["text_embeds"])
            assert torch.equal(cond.time_ids, step["added_cond_kwargs"]["time_ids"])
        torch.testing.assert_close(predict_noise(model, None, step["x"], step["t"], cond), step["output"])


def test_prediction_equals_a_direct_call_of_the_unet(model: LoadedModel) -> None:
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    encoded = model.pipeline.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=0
    )
    added = None
    if model.kind == "sdxl":
        added = {"text_embeds": encoded[2], "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 3)}
    direct = model.unet(x, t, encoded[0], added_cond_kwargs=added).sample
    assert torch.equal(predict_noise(model, None, x, t, encode_prompts(model, PROMPTS)), direct)


def test_unconditional_rows(model: LoadedModel) -> None:
    empty, encoded = unconditional(model, 2), encode_prompts(model, ["", ""])
    zeros = model.kind == "sdxl" and model.pipeline.config.force_zeros_for_empty_prompt
    assert (len(empty), bool((empty.embeds == 0).all())) == (2, zeros)
    torch.testing.assert_close(empty.embeds, encoded.embeds * (not zeros))


def test_encoding_does_not_depend_on_the_batch_and_keeps_no_graph(model: LoadedModel) -> None:
    for part in (model.pipeline.text_encoder, getattr(model.pipeline, "text_encoder_2", None)):
        if part is not None:
            part.requires_grad_(True)
    one, many = encode_prompts(model, PROMPTS, batch_size=1), encode_prompts(model, PROMPTS)
    assert len(one) == len(many) == 3
    assert not one.embeds.requires_grad
    torch.testing.assert_close(one.embeds, many.embeds)
    if model.kind == "sdxl":
        torch.testing.assert_close(one.pooled, many.pooled)
    with pytest.raises(UserError, match="no prompts"):
        encode_prompts(model, [])


@pytest.fixture(params=[False, True], ids=["sd", "sdxl"])
def rows(request: pytest.FixtureRequest) -> Conditioning:
    numbers = torch.arange(4.0)
    extra = (numbers[:, None].expand(4, 5), numbers[:, None].expand(4, 6)) if request.param else ()
    return Conditioning(numbers[:, None, None].expand(4, 2, 3), *extra)


def content(cond: Conditioning) -> list[float]:
    """The number that fills each row, checked to be the same in every tensor."""
    parts = [part.flatten(1) for part in (cond.embeds, cond.pooled, cond.time_ids) if part is not None]
    assert all(bool((part == parts[0][:, :1]).all()) for part in parts)
    return [float(value) for value in parts[0][:, 0]]


def test_row_operations(rows: Conditioning) -> None:
    assert content(rows[1]) == content(rows[1:2]) == content(rows[torch.tensor([1])]) == [1]
    assert content(rows[-1]) == [3]
    assert content(rows[torch.tensor([True, False, False, True])]) == [0, 3]
    assert content(Conditioning.cat([rows[2:], rows[0]])) == [2, 3, 0]
    assert content(rows[2].expand(3)) == [2, 2, 2]
    keep = torch.tensor([True, False, True, False])
    assert content(rows.where(keep, rows[3])) == [0, 3, 2, 3]
    assert content(rows.where(keep, rows[torch.tensor([3, 2, 1, 0])])) == [0, 2, 2, 0]
    assert content(rows.to("cpu", torch.bfloat16)) == [0, 1, 2, 3]
    assert rows.to(dtype=torch.float16).embeds.dtype == torch.float16
    with pytest.raises(UserError, match="this has 4"):
        rows.expand(2)
