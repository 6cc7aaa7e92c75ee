"""The first of two stages: the model that an arm's training starts from, theta_0 of the paper's Algorithm 1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from adapter_mu.data.cache import content_key, fingerprint
from adapter_mu.data.prompts import expand
from adapter_mu.export.merge import merge
from adapter_mu.methods import StartMethod, new_method
from adapter_mu.models import LoadedModel
from adapter_mu.params import load_adapter, save_adapter
from adapter_mu.params.files import PAYLOAD_HASH, read_metadata
from adapter_mu.recipe import Recipe
from adapter_mu.stages.setting import Run

EDIT, ADAPTER = "edit.safetensors", "adapter.safetensors"
ON_TOP_OF = "edit_payload"  # in an adapter's metadata: the payload hash of the edit that it was trained on top of


def made(folder: Path, arm: str) -> list[str]:
    """What an arm of a finished run consists of: its files, and the folder of the merged model."""
    return [*(part for part in (EDIT, ADAPTER) if (folder / "arms" / arm / part).is_file()), "merged/"]


@dataclass(frozen=True)
class Start:
    """A model, and what the files of an arm that starts from it say about it."""

    model: LoadedModel
    facts: dict[str, str]


def starting_model(run: Run, name: str, recipe: Recipe) -> Start:
    """The base; with a closed-form method the base and its edit, which is saved; with `none` somebody's checkpoint."""
    method = new_method(recipe.method.name, recipe.method.options)
    facts = arm_facts(run, recipe)
    if not isinstance(method, StartMethod):
        return Start(run.model, facts)
    saved = run.arm_folder(name) / EDIT
    if not saved.is_file():
        made = _cached_edit(run, recipe, method)
        if isinstance(made, LoadedModel):
            return Start(made, facts | {"base": made.name, "base_hash": fingerprint(made.unet)})
        save_adapter(load_adapter(run.model.unet, made), saved, facts)
    edited = merge(run.model, load_adapter(run.model.unet, saved))
    return Start(edited, facts | {ON_TOP_OF: read_metadata(saved)[PAYLOAD_HASH]})


def _cached_edit(run: Run, recipe: Recipe, method: StartMethod) -> LoadedModel | Path:
    """Where the edit lies, made once for all arms with the same options; or the whole model, which is on disk."""
    prompts = expand(recipe.data.forget)
    told = [asdict(prompt) for prompt in prompts]
    key = content_key(start=recipe.method.model_dump(), base=run.base_hash, prompts=told)
    path = run.folder / "cache" / f"{key}.safetensors"
    if not path.is_file():
        made = method.start(run.model, prompts)
        if isinstance(made, LoadedModel):
            return made
        save_adapter(made, path)
    return path


def arm_facts(run: Run, recipe: Recipe) -> dict[str, str]:
    """What an arm's files say about where they come from."""
    return {
        "base": run.model.name,
        "base_hash": run.base_hash,
        "base_dtype": recipe.base.dtype,
        "recipe": recipe.name,
        "recipe_hash": content_key(**recipe.model_dump(mode="json", exclude={"workers"})),
        "concept": recipe.concept,
        "method": recipe.method.name,
    }
