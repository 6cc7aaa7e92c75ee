"""Any diffusers text-to-image pipeline (SD, SDXL, FLUX.1, ...) as a painter of pictures, one seed each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from adapter_mu.data.cache import pipeline_fingerprint
from adapter_mu.errors import ModelError
from adapter_mu.models import load_model
from adapter_mu.models.load import BUILT_IN, HUB_ID

# They would black out or replace pictures, or belong to inputs that are not text; a pipeline works without them.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; None leaves it to the pipeline's own default."""

    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    negative: str = ""


class Painter:
    """A loaded pipeline; `identity` changes with its weights, precision and scheduler."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        self.takes = set(inspect.signature(pipeline.__call__).parameters)
        if missing := {"prompt", "generator", "num_inference_steps"} - self.takes:
            raise ModelError(f"'{name}' is a {type(pipeline).__name__}, which takes no {sorted(missing)[0]}.")
        self.identity = pipeline_fingerprint(pipeline)
        pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def paint(self, texts: Sequence[str], seeds: Sequence[int], how: Drawing) -> list[Image.Image]:
        """One picture a text, each from its own generator on the CPU."""
        wanted = {
            "num_inference_steps": how.steps,
            "guidance_scale": how.guidance,
            "height": how.size,
            "width": how.size,
            "negative_prompt": [how.negative] * len(texts) if how.negative else None,
        }
        given = {key: value for key, value in wanted.items() if value is not None}
        if unknown := sorted(given.keys() - self.takes):
            raise ModelError(f"'{self.name}' is a {type(self.pipeline).__name__}, which takes no {unknown[0]}.")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        painted: list[Image.Image] = self.pipeline(list(texts), generator=generators, **given).images
        return painted


def load_painter(
    source: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    offload: str | None = None,
    local_files_only: bool = False,
    config: str | None = None,
) -> Painter:
    """A painter from a built-in name, a diffusers folder, a .safetensors file or a hub id; safetensors only.

    Args:
        source: as for `load_model`, but of any text-to-image pipeline. Only a hub id is looked for on the network.
        revision: commit, tag or branch of a hub id.
        variant: weight variant, such as "fp16".
        dtype: of all weights.
        device: where it works.
        offload: "model" keeps one network at a time on the GPU, "sequential" one layer; None keeps all there.
        local_files_only: read the hub's cache only.
        config: for a single file, a folder with its architecture.

    Raises:
        ModelError: nothing there, no .safetensors weights, or no text-to-image pipeline.
    """
    if offload and device != "cuda":
        raise ModelError(f"--offload {offload} moves networks between CPU and GPU and needs a GPU; leave it out.")
    path = Path(source).expanduser()
    if source in BUILT_IN or path.is_file():
        pipeline = load_model(source, dtype=dtype, config=config).pipeline
    elif path.is_dir() or HUB_ID.fullmatch(source):
        where = {"revision": revision, "variant": variant, "local_files_only": local_files_only or path.is_dir()}
        pipeline = _from_diffusers(source, path, where | {"dtype": dtype})
    else:
        raise ModelError(f"nothing to load at '{source}': it is no file, no folder and no hub id 'owner/name'.")
    painter = Painter(pipeline, source)
    _place(pipeline, device, offload)
    return painter


def _from_diffusers(source: str, path: Path, options: dict[str, Any]) -> Any:
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ModelError(f"'{path}' has no model_index.json: name a diffusers folder or a .safetensors file.")
    try:
        loader = diffusers.DiffusionPipeline
        where = {key: options[key] for key in ("revision", "local_files_only")}
        parts = loader.load_config(source, **where)
        left_out: dict[str, Any] = {name: None for name in LEFT_OUT if name in parts}
        if "requires_safety_checker" in parts:
            left_out["requires_safety_checker"] = False
        return loader.from_pretrained(source, use_safetensors=True, **options, **left_out)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"diffusers cannot load '{source}' with .safetensors weights: {reason}") from error


def _place(pipeline: Any, device: str, offload: str | None) -> None:
    if offload == "model":
        pipeline.enable_model_cpu_offload()
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload()
    else:
        pipeline.to(device)
