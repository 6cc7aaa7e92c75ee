"""No unlearning of our own: the start is a checkpoint that somebody unlearned with any other tool.

Concept Ablation, SalUn, MACE, AdvUnlearn and the like leave a changed UNet or a changed text encoder; meta-unlearning
needs nothing else of them. Pictures are still drawn by the recipe's base, which knows the concept.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from adapter_mu.data.prompts import Prompt
from adapter_mu.errors import ModelError
from adapter_mu.methods.registry import register
from adapter_mu.models import LoadedModel, check_part, load_model, part_files, with_parts
from adapter_mu.models.files import file_kind, folder_kind, refuse_pickle
from adapter_mu.models.load import is_hub_id, locate
from adapter_mu.recipe import Strict


class NoneOptions(Strict):
    """A whole `checkpoint` (folder, single file with `config`, or hub id), or parts that replace the base's own.

    A part is a .safetensors file in diffusers' layout, also one that holds changed tensors only, or a sub-folder of a
    diffusers folder.
    """

    checkpoint: str | None = None
    config: str | None = None
    revision: str | None = None
    variant: str | None = None
    unet: Path | None = None
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None

    @property
    def parts(self) -> dict[str, Path]:
        """What replaces the base's own, by name."""
        named = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: path.expanduser() for name, path in named.items() if path is not None}

    @model_validator(mode="after")
    def _says_what(self) -> NoneOptions:
        if (self.checkpoint is None) == (not self.parts):
            raise ValueError("name either a `checkpoint`, or parts of one: `unet`, `text_encoder`, `text_encoder_2`")
        for name, path in self.parts.items():
            part_files(path, name)
        if self.checkpoint is not None:
            refuse_pickle(Path(self.checkpoint))
        return self


@register("none", NoneOptions)
class NoMethod:
    """Starts from what is there."""

    def __init__(self, options: NoneOptions) -> None:
        """Options from a recipe."""
        self.options = options

    def check(self, model: LoadedModel) -> None:
        """Compare what is on this machine with the base, from headers; ModelError when it does not fit."""
        for part, path in self.options.parts.items():
            check_part(model, part, path)
        source = self.options.checkpoint
        if source is None or is_hub_id(source):
            return
        path = locate(source, None, None, local_files_only=True)
        if (kind := folder_kind(path) if path.is_dir() else file_kind(path)) != model.kind:
            raise ModelError(f"'{source}' is {kind}, but the recipe's base is {model.kind}; correct one of them.")

    def start(self, model: LoadedModel, prompts: list[Prompt]) -> LoadedModel:
        """The checkpoint, or the base with its parts replaced, in the base's dtype and on its device.

        Raises:
            ModelError: nothing there, a pickle, or another architecture than the base's.
        """
        options = self.options
        if options.checkpoint is None:
            return with_parts(model, options.parts)
        found = load_model(
            options.checkpoint,
            revision=options.revision,
            variant=options.variant,
            dtype=model.dtype,
            device=model.device,
            config=options.config,
        )
        if _shapes(found) != _shapes(model):
            raise ModelError(f"the UNet of '{options.checkpoint}' is not built like that of '{model.name}'.")
        return found


def _shapes(model: LoadedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.unet.state_dict().items()}
