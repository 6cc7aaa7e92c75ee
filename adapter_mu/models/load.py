"""Loading SD 1.x and SDXL: built-in, diffusers folder, single .safetensors file, or hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from adapter_mu.errors import ModelError
from adapter_mu.models.files import (
    PIPELINES,
    Kind,
    architecture_folder,
    check_folder_weights,
    file_kind,
    folder_kind,
    folder_tensor_names,
    refuse_pickle,
)

BUILT_IN = ("shapes-sd", "shapes-sdxl")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class LoadedModel:
    """A frozen pipeline in eval mode, and the few facts that training needs of it."""

    kind: Kind
    pipeline: Any
    """`StableDiffusionPipeline` or `StableDiffusionXLPipeline`, without safety checker."""
    name: str
    source: str
    """The folder or file that was read, absolute; a hub id's contains the commit."""

    @property
    def unet(self) -> Any:
        """The `UNet2DConditionModel`."""
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        """The `AutoencoderKL`."""
        return self.pipeline.vae

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        """What the UNet predicts: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) latents."""
        found: Literal["epsilon", "v_prediction"] = self.pipeline.scheduler.config.prediction_type
        return found

    @property
    def latent_size(self) -> int:
        """Height and width, in latent pixels, that the UNet was trained at."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels; timesteps are integers below it."""
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar_t for every timestep, shape (num_train_timesteps,), on the CPU."""
        table: Tensor = self.pipeline.scheduler.alphas_cumprod
        return table

    @property
    def device(self) -> torch.device:
        """Where the UNet lies."""
        device: torch.device = self.unet.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        dtype: torch.dtype = self.unet.dtype
        return dtype


def load_model(
    source: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    local_files_only: bool | None = None,
    config: str | None = None,
) -> LoadedModel:
    """Load `source`, frozen and in eval mode, without safety checker.

    Args:
        source: a built-in name ("shapes-sd", "shapes-sdxl"), a diffusers folder, a .safetensors file, or a hub id
            "owner/name". Something that exists on disk is never looked for on the hub.
        revision: commit, tag or branch of a hub id.
        variant: weight variant of a folder or hub id, such as "fp16".
        dtype: dtype of all weights.
        device: where the models go.
        local_files_only: for a hub id, read the cache only; `None` asks the hub unless HF_HUB_OFFLINE is set.
        config: for a single file, a local diffusers folder that describes the same architecture; `None` looks for
            the usual one in the Hugging Face cache, never on the network.

    Raises:
        ModelError: not found, a pickle, incomplete, or an architecture that adapter_mu does not handle.
    """
    path = locate(source, revision, variant, bool(local_files_only))
    if path.is_dir():
        kind = folder_kind(path)
        check_folder_weights(path)
        pipeline = _read(kind, path, dtype, variant=variant)
    else:
        kind = file_kind(path)
        pipeline = _read(kind, path, dtype, config=str(architecture_folder(path, kind, config)))
    name = path.stem if path.is_file() else Path(source).name
    model = LoadedModel(kind, pipeline, name, str(path.absolute()))
    _check(model)
    for _, part in _modules(pipeline):
        part.requires_grad_(False).eval()
    pipeline.to(device)
    return model


def is_hub_id(source: str) -> bool:
    """Whether `source` would be looked for on the hub: "owner/name" that is neither on disk nor a file's name."""
    path = Path(source).expanduser()
    return bool(HUB_ID.fullmatch(source)) and path.suffix.lower() != ".safetensors" and not path.exists()


def locate(source: str, revision: str | None, variant: str | None, local_files_only: bool) -> Path:
    """The folder or file that `source` means, fetched from the hub only if it is a hub id and nothing else.

    Raises:
        ModelError: nothing there, or a pickle.
    """
    if source in BUILT_IN:
        folder = Path(str(resources.files("adapter_mu.shapes"))) / "checkpoints" / source
        if not (folder / "model_index.json").is_file():
            raise ModelError(f"the built-in '{source}' is not in this installation ({folder}): reinstall adapter_mu.")
        return folder
    path = Path(source).expanduser()
    if path.is_file():
        refuse_pickle(path)
        return path
    if path.is_dir():
        return path
    if is_hub_id(source):
        return _fetch(source, revision, variant, local_files_only)
    raise ModelError(
        f"nothing to load at '{source}': it is no built-in ({', '.join(BUILT_IN)}), no file or folder at"
        f" '{path.absolute()}', and no hub id of the form 'owner/name'."
    )


def _fetch(repo: str, revision: str | None, variant: str | None, local_files_only: bool) -> Path:
    """Folder in the Hugging Face cache; model_index.json comes first, so that no foreign weights are downloaded."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    try:
        folder_kind(Path(hf_hub_download(repo, "model_index.json", **where)).parent)
        skipped = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
        return Path(DiffusionPipeline.download(repo, variant=variant, use_safetensors=True, **where, **skipped))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load '{repo}' (revision {revision or 'main'}): there is no file or folder at"
            f" '{Path(repo).absolute()}', and the Hugging Face {'cache' if local_files_only else 'hub'} gave none"
            f" with .safetensors weights ({_first_line(error)})."
        ) from error


def _read(kind: Kind, path: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The pipeline in `path`; whatever diffusers or transformers stumble over becomes a `ModelError`."""
    import diffusers
    import transformers

    # Reading a local file takes seconds; their bars would bury the run's own.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, next(name for name, its_kind in PIPELINES.items() if its_kind == kind))
    options |= {"dtype": dtype, "local_files_only": True, "feature_extractor": None, "image_encoder": None}
    if kind == "sd":
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        if path.is_dir():
            return pipeline_class.from_pretrained(path, use_safetensors=True, **options)
        return pipeline_class.from_single_file(str(path), **options)
    except _READ_ERRORS as error:
        reason = "some of its tensors are missing" if "meta tensor" in str(error) else _first_line(error)
        raise ModelError(f"diffusers cannot read '{path}' as a {pipeline_class.__name__}: {reason}") from error


def _check(model: LoadedModel) -> None:
    """Refuse what would load but train wrongly."""
    where, scheduler, unet = f"'{model.source}'", model.pipeline.scheduler, model.unet
    for name, part in _modules(model.pipeline):
        lacking = [key for key, value in part.named_parameters() if value.is_meta]
        if name.startswith("text_encoder") and Path(model.source).is_dir():
            # transformers fills these with random numbers and only logs it.
            stored = {key.removeprefix("text_model.") for key in folder_tensor_names(Path(model.source) / name)}
            lacking = [key for key in part.state_dict() if key.removeprefix("text_model.") not in stored]
        if lacking:
            raise ModelError(f"{where} lacks {len(lacking)} tensors of its {name}, the first is '{lacking[0]}'.")
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ModelError(f"{where} is no SD 1.x or SDXL: its {type(scheduler).__name__} has no alphas_cumprod.")
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{where} predicts '{scheduler.config.prediction_type}': adapter_mu works on 'epsilon' and 'v_prediction'."
        )
    if unet.config.in_channels != model.vae.config.latent_channels:
        raise ModelError(
            f"the unet in {where} takes {unet.config.in_channels} channels, but its vae makes"
            f" {model.vae.config.latent_channels}: inpainting and instruction checkpoints are not handled."
        )


def _modules(pipeline: Any) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in pipeline.components.items() if isinstance(part, nn.Module)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
