"""What is on disk: safe weight files only, and which architecture they hold, seen before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from adapter_mu.errors import ModelError

Kind = Literal["sd", "sdxl"]
PIPELINES: dict[str, Kind] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
# Where the architecture of a single file is described when the user names no `config`.
DEFAULT_CONFIGS: dict[Kind, str] = {
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def refuse_pickle(path: Path) -> None:
    """Raise `ModelError` if `path` has the suffix of a pickle, which can run code when it is opened."""
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"'{path}' is a pickle, which can run code when it is opened: convert it to .safetensors first, with"
            " `torch.load(path, weights_only=True)` and `safetensors.torch.save_file` for a single file, or with"
            " `pipeline.save_pretrained(folder, safe_serialization=True)` for a diffusers folder."
        )


def tensor_names(path: Path) -> list[str]:
    """Names in a .safetensors file; reads its header, and checks that the file is as long as the header says."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"'{path}' is not a complete safetensors file ({error}): it is truncated or of another format;"
            " fetch or export it again."
        ) from error


def folder_tensor_names(part: Path) -> set[str]:
    """Names in all .safetensors files of one component's folder."""
    return {name for file in part.glob("*.safetensors") for name in tensor_names(file)}


def folder_kind(folder: Path) -> Kind:
    """Architecture of a diffusers folder, from its `model_index.json`; `ModelError` if it is not one of ours."""
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise ModelError(f"'{folder}' has no model_index.json: name a diffusers folder or a .safetensors file.")
    try:
        index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
        kind = PIPELINES.get(str(index["_class_name"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"'{index_path}' is not a diffusers pipeline description: fetch the folder again.") from error
    if kind is None:
        raise ModelError(
            f"'{folder}' holds a {index['_class_name']}: adapter_mu works on {' and '.join(PIPELINES)} (SD 1.x, SDXL)."
        )
    if index.get("unet") != ["diffusers", "UNet2DConditionModel"]:
        raise ModelError(f"the unet in '{folder}' is {index.get('unet')}: adapter_mu works on UNet2DConditionModel.")
    return kind


def check_folder_weights(folder: Path) -> None:
    """Raise `ModelError` unless every model in a diffusers folder has complete .safetensors weights."""
    for part in (folder / name for name in WEIGHTED if (folder / name).is_dir()):
        if folder_tensor_names(part):
            continue
        for file in sorted(part.iterdir()):
            refuse_pickle(file)
        raise ModelError(f"'{part}' holds no .safetensors weights: fetch the folder again.")


def file_kind(path: Path) -> Kind:
    """Architecture of a single-file checkpoint in the original (LDM) layout, from its tensor names alone."""
    names = tensor_names(path)

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if not has("model.diffusion_model.input_blocks."):
        what = "an adapter (LoRA)" if any("lora" in name for name in names) else "no SD 1.x or SDXL checkpoint"
        raise ModelError(f"'{path}' holds {what}: name a full checkpoint, or a diffusers folder.")
    if has("conditioner.embedders.1."):
        return "sdxl"
    if has("cond_stage_model.transformer."):
        return "sd"
    raise ModelError(
        f"'{path}' holds no text encoder of SD 1.x or SDXL (SD 2.x, a refiner and a bare UNet have none):"
        " name a full SD 1.x or SDXL checkpoint, or a diffusers folder."
    )


def architecture_folder(path: Path, kind: Kind, config: str | None) -> Path:
    """Local folder that describes a single file's architecture: `config`, else the hub's cache; never the network."""
    if config is not None:
        folder = Path(config).expanduser()
        if not folder.is_dir():
            raise ModelError(f"config '{config}' is not a folder: name a local diffusers folder of the architecture.")
    else:
        folder = _cached(path, DEFAULT_CONFIGS[kind])
    if folder_kind(folder) != kind:
        raise ModelError(f"'{path}' is an {kind.upper()} checkpoint, but '{folder}' describes another architecture.")
    return folder


def _cached(path: Path, repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"'{path}' is a single file, which holds weights but no configuration or tokenizer: pass `config`, a local"
            f" diffusers folder of the same architecture, or download '{repo}' into the Hugging Face cache once."
        ) from error
