"""The typed recipe: one YAML file that says base, data, method, meta objective, attacks and scores."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapter_mu.errors import RecipeError


class Strict(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prompts(Strict):
    """Prompts with optional {placeholders}; `fill` lists the words each may take, used equally often.

    `shows` names the concept a detector should find in the picture and may use the same placeholders; `file` holds
    one prompt a line and is looked for in the working directory.
    """

    prompts: list[str] = []
    file: Path | None = None
    fill: dict[str, list[str]] = {}
    shows: str = ""
    images: int = Field(gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _has_prompts(self) -> Prompts:
        if not self.prompts and self.file is None:
            raise ValueError("the prompt list is empty; give `prompts` or a `file` with one prompt a line")
        return self


class Sampler(Strict):
    """How pictures are drawn: the checkpoint's own scheduler, `steps` steps, classifier-free `guidance`."""

    steps: int = Field(50, gt=0)
    guidance: float = Field(7.5, ge=0)
    batch_size: int = Field(4, gt=0)


class Base(Strict):
    """The checkpoint theta*: an embedded name, a diffusers folder, a .safetensors file or a hub id."""

    model: str
    config: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    local_files_only: bool = False


class Data(Strict):
    """The sets the base itself generates: forget, related benign, unrelated benign (paper section 5)."""

    forget: Prompts
    related: Prompts
    unrelated: Prompts
    sampler: Sampler = Sampler()
    keep_only_shown: bool = False


class Method(BaseModel):
    """The unlearning method by name; its own options stand beside the name and are checked by the method."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything in the recipe's `method` part but the name."""
        return dict(self.model_extra or {})


class Adapter(Strict):
    """What is trained and saved."""

    kind: Literal["lora", "dense"] = "lora"
    subset: str = "non_cross_attention"
    rank: int = Field(16, gt=0)
    alpha: float | None = None


class Train(Strict):
    """The outer loop (paper Algorithm 1): N = `steps`, omega = `lr`, gamma_1 = `unlearn_weight`."""

    steps: int = Field(gt=0)
    lr: float = Field(gt=0)
    batch_size: int = Field(1, gt=0)
    unlearn_weight: float = Field(1.0, ge=0)
    retain_related: float = Field(0.0, ge=0)
    retain_unrelated: float = Field(0.0, ge=0)
    empty_captions: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int = Field(50, gt=0)
    checkpointing: bool = False


class Attacker(Strict):
    """The simulated finetune: M = `steps` updates with learning rate tau = `lr`; none (tau = 0) is plain ascent.

    `required_drop` halves tau until one step really lowers the attacker's own loss by that share.
    `space` is where it moves: every UNet weight, the weights the adapter touches, or the adapter itself.
    """

    rule: Literal["sgd", "momentum", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    steps: int = Field(1, ge=0)
    space: Literal["full", "subset", "adapter"] = "adapter"
    empty_captions: float = Field(0.0, ge=0, le=1)
    required_drop: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _drop_is_of_gradient_steps(self) -> Attacker:
        if self.required_drop and self.rule == "adamw":
            raise ValueError("required_drop tries gradient steps, which AdamW does not take; set it to 0 or use sgd")
        return self


class Meta(Strict):
    """The meta objective, paper eq. 3, and how its gradient is taken; gamma_2 = `weight`."""

    weight: float = Field(gt=0)
    order: Literal["exact", "first_order"] | int = "exact"
    hvp: Literal["auto", "reverse_over_reverse", "pair_checkpoint", "finite_difference"] = "auto"
    attacker: Attacker
    forget: float = 1.0
    related: float = 1.0
    unrelated: float = 1.0
    keep_unconditional: float = Field(0.0, ge=0)
    restore_related: float | None = None
    restore_unrelated: float | None = None
    bound: Literal["none", "cap", "tanh", "log"] = "none"
    bound_at: float = Field(1.0, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)


class Attack(Strict):
    """A stress test on the merged model: a full finetune on pictures of `data`."""

    data: Prompts
    lr: float = Field(1e-5, gt=0)
    batch_size: int = Field(1, gt=0)
    steps: list[int] = [50, 100, 200, 300]
    empty_captions: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class Evaluate(Strict):
    """How scores are taken: the concept's and the benign prompts, at every guidance scale; the worst counts."""

    detector: str
    concept: Prompts
    benign: Prompts
    guidance: list[float] = Field([1.5, 7.5], min_length=1)
    usual_guidance: float = 7.5
    steps: int = Field(50, gt=0)
    batch_size: int = Field(4, gt=0)


class Recipe(Strict):
    """One run. `arms` maps an arm's name to the changes that make it; each is a whole recipe of its own."""

    name: str
    description: str = ""
    concept: str
    base: Base
    seed: int = 0
    data: Data
    method: Method
    adapter: Adapter = Adapter()
    train: Train
    meta: Meta | None = None
    attacks: dict[str, Attack] = {}
    evaluate: Evaluate | None = None
    arms: dict[str, dict[str, Any]] = {}
    workers: int = Field(1, gt=0)  # arms at once, each in a process with its share of the cores

    @field_validator("arms", "attacks", mode="before")
    @classmethod
    def _none_means_none(cls, value: Any) -> Any:
        """`arms: null` or `attacks: null` drops those of the recipe this one extends."""
        return {} if value is None else value

    def arm(self, name: str) -> Recipe:
        """The recipe of one arm: this recipe with the arm's changes merged in."""
        return parse(merged(self.model_dump(mode="json") | {"arms": {}}, self.arms[name]), f"arm {name}")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key; whatever is not a mapping on both sides is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def recipe_folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    return next((p for p in (package / "_recipes", package.parent / "recipes") if p.is_dir()), package / "_recipes")


def recipe_names() -> list[str]:
    """The shipped recipes by name; attack files are not recipes."""
    folder = recipe_folder()
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in found if not name.startswith("attacks/"))


def recipe_path(name_or_path: str, folder: Path = Path()) -> Path:
    """The file of a path (relative to `folder`) or of a shipped recipe ("shapes/demo"); RecipeError for neither."""
    for path in (folder / name_or_path, recipe_folder() / f"{name_or_path}.yaml"):
        if path.is_file():
            return path
    raise RecipeError(f"There is no recipe '{name_or_path}'; give a YAML file or a name from `adapter-mu ls`.")


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"Recipe {path} extends itself, directly or through others; remove one `extends`.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"Recipe {path} must be a mapping of keys to values.")
    parent = content.pop("extends", None)
    below = _read(recipe_path(str(parent), path.parent), (*seen, path.resolve())) if parent else {}
    return merged(below, content)


def _override(content: dict[str, Any], text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"Override '{text}' must look like key=value, for example train.steps=100.")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"Override '{text}' has a value that is not valid YAML.") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return merged(content, nested)


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if "[" not in str(part)]  # pydantic's marks, such as literal[...]
    place, value = ".".join(parts) or "recipe", first["input"]
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(parts[-1], _keys_of(parts[:-1]), n=1)
        return f"{where}: unknown key '{place}'; " + (f"did you mean '{close[0]}'?" if close else "remove it.")
    if first["type"] == "missing":
        return f"{where}: '{place}' is missing; add it."
    wants_mapping = first["type"] in ("model_type", "dict_type")
    said = "it must be a mapping of keys to values" if wants_mapping else first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(value, Mapping | BaseModel) else f" (it is {value!r:.80})"
    return f"{where}: '{place}': {said}{found}."


def _keys_of(place: Sequence[str]) -> list[str]:
    """What may stand in the part of a recipe at `place`."""
    part: type[BaseModel] = Recipe
    for key in place:
        if key in part.model_fields:  # else an attack's name, which leads no deeper
            kind = part.model_fields[key].annotation
            part = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel))
    return list(part.model_fields)


def parse(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain data; RecipeError in one sentence naming the first wrong key."""
    try:
        return Recipe.model_validate(dict(content))
    except ValidationError as error:
        raise RecipeError(_sentence(error, where)) from None


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name or a YAML file by path, with `key=value` overrides; every arm is checked too."""
    path = recipe_path(name_or_path)
    content = _read(path)
    for text in overrides:
        content = _override(content, text)
    recipe = parse(content, f"recipe {name_or_path}")
    for arm in recipe.arms:
        recipe.arm(arm)
    return recipe
