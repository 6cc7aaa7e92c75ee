"""Does a written model predict what base and live adapter predict?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapter_mu.errors import ModelError
from adapter_mu.export.assemble import Scaled, assemble
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.single_file import canonical
from adapter_mu.export.streamed_unet import opened_by_diffusers, streamed_unet
from adapter_mu.export.streaming import Lazy, StoredFile
from adapter_mu.params.files import check_payload

TIMESTEPS = (999, 500, 20)
_TOKENS = 8
# Half precision rounds every weight, in the whole network; a merge that is wrong is wrong by the size of the edit.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Verdict:
    """Relative distances of noise predictions, each ||a - b|| / ||b||, the largest over a few inputs."""

    error: float
    """Written model against base + live adapter, in fp32 arithmetic."""
    effect: float
    """Base + live adapter against the base: how much the adapter does at all."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within the tolerance."""
        return self.error <= self.tolerance

    @property
    def drowned(self) -> bool:
        """Rounding changes the predictions more than the adapter does."""
        return 1e-5 < self.effect < self.error

    def __str__(self) -> str:
        """One line for people."""
        text = (
            f"noise predictions differ by {self.error:.1e} from base + live adapter (at most {self.tolerance:.0e});"
            f" the adapter changes them by {self.effect:.1e}"
        )
        return text + ("; warning: rounding outweighs the adapter, choose --dtype fp32" if self.drowned else "")


def verify_file(path: Path, base: Checkpoint, adapters: Scaled, dtype: torch.dtype | None) -> Verdict:
    """Compare a written model with base + live adapters, one layer in memory at a time.

    Args:
        path: the model.
        base: what it was made from.
        adapters: with their scales.
        dtype: that it was written in; None if the base's.

    Raises:
        ModelError: diffusers would not find all tensors, or the predictions differ.
    """
    return _compare(path, streamed_unet(base.folder, opened_by_diffusers(path, base)), base, adapters, dtype)


def verify_opened(path: Path, pipeline: Any, base: Checkpoint, adapters: Scaled) -> Verdict:
    """The same for a whole pipeline that diffusers opened from `path`, in fp32; VAE and text encoders too.

    Raises:
        ModelError: the file is damaged, the predictions differ, or another component is not the merged one.
    """
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        check_payload(file, StoredFile(file).metadata)
    dtype = next(iter(opened_by_diffusers(path, base).values())).dtype
    for component, tensors in assemble(base, adapters, torch.float32, []).items():
        if component != "unet":
            found = getattr(pipeline, component).state_dict()
            named = {canonical(component, name): tensor for name, tensor in found.items()}
            _compare_weights(path, component, named, tensors, TOLERANCES.get(dtype, 1e-5))
    return _compare(path, pipeline.unet, base, adapters, dtype)


def _compare_weights(
    path: Path, component: str, found: Mapping[str, Tensor], expected: Mapping[str, Lazy], tolerance: float
) -> None:
    for name, tensor in expected.items():
        if name in found and distance([found[name]], [tensor.make().reshape(found[name].shape)]) > tolerance:
            raise ModelError(f"'{path.name}' is not base + adapter: its {component} {name!r} is another.")


def _compare(path: Path, unet: Any, base: Checkpoint, adapters: Scaled, dtype: torch.dtype | None) -> Verdict:
    weights = base.components["unet"]
    live = predictions(streamed_unet(base.folder, weights, adapters))
    plain = predictions(streamed_unet(base.folder, weights))
    written = dtype or next(iter(weights.values())).dtype
    verdict = Verdict(distance(predictions(unet), live), distance(live, plain), TOLERANCES.get(written, 1e-5))
    if not verdict.passed:
        raise ModelError(f"'{path.name}' is not base + adapter: {verdict}.")
    return verdict


@torch.no_grad()
def predictions(unet: Any) -> list[Tensor]:
    """Outputs at three timesteps for inputs drawn from a fixed seed; SDXL's conditioning is drawn too."""
    config, generator = unet.config, torch.Generator().manual_seed(0)
    size = 2 ** len(config.block_out_channels)
    rows = len(TIMESTEPS)
    latents = torch.randn(rows, config.in_channels, size, size, generator=generator)
    context = torch.randn(rows, _TOKENS, config.cross_attention_dim, generator=generator)
    added = _added(config, rows, generator)
    output = unet(latents, torch.tensor(TIMESTEPS), context, added_cond_kwargs=added).sample
    return list(output)


def _added(config: Any, rows: int, generator: torch.Generator) -> dict[str, Tensor] | None:
    if config.addition_embed_type != "text_time":
        return None
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    size = float(8 * 2 ** len(config.block_out_channels))
    times = torch.tensor([[size, size, 0.0, 0.0, size, size]]).expand(rows, 6)
    return {"text_embeds": torch.randn(rows, pooled, generator=generator), "time_ids": times}


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest ||a - b|| / ||b||; infinite where a prediction is not finite."""
    errors = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(found, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)
