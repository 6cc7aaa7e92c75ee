"""What the UNet is told besides the noisy latents: text embeddings and, for SDXL, pooled text and image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_mu.errors import UserError
from adapter_mu.models.load import LoadedModel


@dataclass(frozen=True)
class Conditioning:
    """N rows of conditioning; one row goes with one latent."""

    embeds: Tensor
    """Hidden states of the text encoder(s), shape (N, tokens, width)."""
    pooled: Tensor | None = None
    """SDXL: pooled output of the second text encoder, shape (N, its projection)."""
    time_ids: Tensor | None = None
    """SDXL: original height and width, crop top and left, target height and width, in pixels, shape (N, 6)."""

    def __len__(self) -> int:
        """N, the number of rows."""
        return self.embeds.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Conditioning:
        """Rows at `index`: an integer (kept as one row), a slice, or a tensor of integers or booleans."""
        if isinstance(index, int):
            index = torch.tensor([index], device=self.embeds.device)
        return self._map(lambda tensor: tensor[index])

    def expand(self, n: int) -> Conditioning:
        """The single row of this conditioning, seen `n` times without copying; `UserError` for several rows."""
        if len(self) != 1:
            raise UserError(f"only one row of conditioning can be expanded, this has {len(self)}: index it first.")
        return self._map(lambda tensor: tensor.expand(n, *tensor.shape[1:]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """A copy on `device` and in `dtype`, where given."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def where(self, keep: Tensor, other: Conditioning) -> Conditioning:
        """Like `Tensor.where`: own rows where `keep` (booleans, shape (N,)), `other`'s (N rows or one) elsewhere."""

        def choose(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(keep.to(own.device).reshape(-1, *[1] * (own.dim() - 1)), own, others)

        return self._zip(other, choose)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of `parts`, in order."""
        result, *rest = parts
        for part in rest:
            result = result._zip(part, lambda first, second: torch.cat([first, second]))
        return result

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        pooled = None if self.pooled is None else change(self.pooled)
        return Conditioning(change(self.embeds), pooled, None if self.time_ids is None else change(self.time_ids))

    def _zip(self, other: Conditioning, join: Callable[[Tensor, Tensor], Tensor]) -> Conditioning:
        if self.pooled is None or self.time_ids is None or other.pooled is None or other.time_ids is None:
            return Conditioning(join(self.embeds, other.embeds))
        joined = (join(self.pooled, other.pooled), join(self.time_ids, other.time_ids))
        return Conditioning(join(self.embeds, other.embeds), *joined)


def encode_prompts(
    model: LoadedModel, prompts: Sequence[str], *, batch_size: int = 64, gradient: bool = False
) -> Conditioning:
    """One row per prompt, as the pipeline itself encodes it, at the model's default image size.

    With `gradient` the rows can be differentiated with respect to whatever the text encoders train.

    SDXL: penultimate hidden states of both encoders side by side, pooled output of the second. `UserError` for none.
    """
    if not prompts:
        raise UserError("there are no prompts to encode: give at least one (it may be the empty string).")
    batches = [list(prompts[start : start + batch_size]) for start in range(0, len(prompts), batch_size)]
    with torch.set_grad_enabled(gradient):
        return Conditioning.cat([_encode(model, batch, negative=False) for batch in batches])


def unconditional(model: LoadedModel, n: int = 1) -> Conditioning:
    """`n` rows of what the pipeline uses when no negative prompt is given.

    The empty prompt, encoded; for an SDXL pipeline with `force_zeros_for_empty_prompt`, zeros.
    """
    with torch.no_grad():
        return _encode(model, [""], negative=True).expand(n)


def _encode(model: LoadedModel, prompts: list[str], *, negative: bool) -> Conditioning:
    pipeline = model.pipeline
    encoded = pipeline.encode_prompt(
        prompts, device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=negative
    )
    # Both pipelines answer (embeds, negative embeds), SDXL then (pooled, negative pooled).
    embeds, *pooled = encoded[int(negative) :: 2]
    return Conditioning(embeds, *pooled, *([_time_ids(model, embeds)] if pooled else []))


def _time_ids(model: LoadedModel, embeds: Tensor) -> Tensor:
    """The size rows that the SDXL pipeline makes when it is called without a size: uncropped, default size."""
    pixels = model.latent_size * model.pipeline.vae_scale_factor
    width = model.pipeline.text_encoder_2.config.projection_dim
    row: Tensor = model.pipeline._get_add_time_ids(
        (pixels, pixels), (0, 0), (pixels, pixels), dtype=embeds.dtype, text_encoder_projection_dim=width
    )
    return row.to(embeds.device).repeat(len(embeds), 1)
