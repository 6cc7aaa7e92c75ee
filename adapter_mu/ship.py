"""What leaves the house: merged models, adapter files, extracted LoRAs, with their cards, verified, and the upload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from adapter_mu.data.cache import write_text
from adapter_mu.errors import RecipeError, UserError
from adapter_mu.export.adapters import UNMERGED, AdapterForm, write_adapter
from adapter_mu.export.assemble import check_base
from adapter_mu.export.card import model_card
from adapter_mu.export.checkpoint import Checkpoint, open_checkpoint
from adapter_mu.export.edits import Edits, read_edits
from adapter_mu.export.extract import extract
from adapter_mu.export.merging import Form, Merged, merge_to
from adapter_mu.export.staging import refuse_existing
from adapter_mu.export.verify import verify_opened
from adapter_mu.models import BUILT_IN, load_model
from adapter_mu.params.files import PAYLOAD_HASH
from adapter_mu.recipe import load_recipe
from adapter_mu.report.markdown import attack_table
from adapter_mu.stages import ADAPTER, DTYPES, EDIT, ON_TOP_OF, say


def merge_adapters(
    adapters: Sequence[Path],
    base: str,
    out: Path,
    *,
    config: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    form: Form = "diffusers",
    dtype: str | None = None,
    scales: Sequence[float] | None = None,
    verify: bool = True,
    force: bool = False,
) -> Merged:
    """Merge saved adapters into their base: fp32 arithmetic, one cast, a few weights in memory at a time.

    Args:
        adapters: of adapter_mu, LoRAs in diffusers' or kohya's format, or folders of a run's arms: a closed-form edit
            there comes before the adapter that was trained on top of it.
        base: anything that `load_model` opens.
        out: a folder or file that does not exist.
        config: for a single-file base.
        variant: weight variant of the base.
        revision: of a base on the hub.
        form: of the output.
        dtype: "fp32", "bf16" or "fp16"; None keeps the base's.
        scales: one an adapter; None is 1 for each.
        verify: compare noise predictions before the output gets its name.
        force: merge although an adapter says that it was trained on other weights.

    Raises:
        UserError: a damaged or unfitting adapter or base, `out` exists, or the disk is full.
    """
    refuse_existing(out)
    if form == "single-file" and out.suffix != ".safetensors":
        raise UserError(f"a single file is a .safetensors file, not '{out.name}': end --out in .safetensors.")
    opened = open_checkpoint(base, config=config, variant=variant, revision=revision)
    weighed = list(zip(adapters, _scales(scales, len(adapters)), strict=True))
    files = [(file, scale) for path, scale in weighed for file in arm_files(path)]
    scaled = list(zip(_read([file for file, _ in files], opened, force), [scale for _, scale in files], strict=True))
    card = model_card(opened, [edits for edits, _ in scaled], _results(adapters), merged=True, hub=_hub(base))
    wanted = DTYPES[dtype] if dtype else None
    return merge_to(out, opened, scaled, form=form, dtype=wanted, verify=verify, card=card)


def arm_files(path: Path) -> list[Path]:
    """An adapter's file; of an arm's folder the edit it starts from, if it has one, and its adapter, if it trains.

    Raises:
        UserError: a folder with neither.
    """
    if not path.is_dir():
        return [path]
    found = [path / name for name in (EDIT, ADAPTER) if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds neither {EDIT} nor {ADAPTER}: give an adapter, or the folder of a run's arm.")
    return found


def _hub(base: str) -> str | None:
    return base if base not in BUILT_IN and not Path(base).expanduser().exists() else None


def _read(adapters: Sequence[Path], base: Checkpoint, force: bool) -> list[Edits]:
    found = [read_edits(adapter, base) for adapter in adapters]
    for edits in found if not force else []:
        check_base(base, edits, DTYPES)
        _check_edit(edits, found)
    return found


def _check_edit(edits: Edits, together: Sequence[Edits]) -> None:
    """UserError for an adapter without the edit that it was trained on top of: alone it has unlearned nothing."""
    needed = edits.metadata.get(ON_TOP_OF)
    if needed and needed not in {other.metadata.get(PAYLOAD_HASH) for other in together}:
        raise UserError(
            f"{edits.name} was trained on top of the {EDIT} that lies beside it: give that file too, or the folder with"
            " both, or --force to merge it alone."
        )


def _scales(scales: Sequence[float] | None, count: int) -> Sequence[float]:
    if scales is None:
        return [1.0] * count
    if len(scales) != count:
        raise UserError(f"{count} adapters need {count} scales, not {len(scales)}: give --scale once for each.")
    return scales


def export_adapter(
    adapter: Path, base: str, out: Path, form: AdapterForm, *, config: str | None = None, dtype: str = "fp32"
) -> Path:
    """Write an adapter for other tools; warns, because what is not merged protects nobody.

    Raises:
        UserError: a damaged or unfitting adapter, `out` exists, or a kind that the format has no place for.
    """
    refuse_existing(out)
    opened = open_checkpoint(base, config=config)
    edits = read_edits(adapter, opened)
    say(UNMERGED)
    card = model_card(opened, [edits], _results([adapter]), merged=False, hub=_hub(base))
    write_adapter(out, edits, opened, form, DTYPES[dtype], card)
    return out


def extract_adapter(
    tuned: str, base: str, out: Path, rank: int, form: AdapterForm, *, config: str | None = None, dtype: str = "fp32"
) -> str:
    """A LoRA of the difference of two checkpoints; beside it, in OUT.energy.json, what it keeps of every layer.

    Raises:
        UserError: the checkpoints do not belong together, `out` exists, or the disk is full.
    """
    refuse_existing(out)
    opened = open_checkpoint(base, config=config)
    found = extract(open_checkpoint(tuned, config=config), opened, rank)
    say(UNMERGED)
    card = model_card(opened, [found.edits], None, merged=False, hub=_hub(base))
    write_adapter(out, found.edits, opened, form, DTYPES[dtype], card)
    write_text(out.with_suffix(".energy.json"), json.dumps([asdict(kept) for kept in found.kept], indent=1))
    return f"{out}\n{found}"


def verify_model(model: str, against: Path, arm: str | None = None, config: str | None = None) -> str:
    """Open a model as others would, whole, and compare it with a run's base and adapter.

    Args:
        model: a diffusers folder or single file.
        against: a run's folder.
        arm: which of the run's arms; may be left out where there is one, or `model` lies in its folder.
        config: for a single file; None takes the run's base.

    Raises:
        UserError: no such run or arm, a damaged model, or one that predicts otherwise.
    """
    if not (against / "recipe.yaml").is_file():
        raise UserError(f"{against} has no recipe.yaml: give the folder of a run.")
    wanted = load_recipe(str(against / "recipe.yaml"), []).base
    base = open_checkpoint(wanted.model, revision=wanted.revision, variant=wanted.variant, config=wanted.config)
    edits = _read(arm_files(_arm(against, arm, Path(model))), base, force=False)
    path = Path(model)
    opened = load_model(model, dtype=torch.float32, config=config or (str(base.folder) if path.is_file() else None))
    return str(verify_opened(path, opened.pipeline, base, [(one, 1.0) for one in edits]))


def _arm(run: Path, arm: str | None, model: Path) -> Path:
    files = [file for name in (EDIT, ADAPTER) for file in run.glob(f"arms/*/{name}")]
    arms = {file.parent.name: file.parent for file in sorted(files)}
    inside = next((name for name, folder in arms.items() if folder.resolve() in model.resolve().parents), None)
    chosen = arm or inside or (next(iter(arms)) if len(arms) == 1 else None)
    if chosen not in arms:
        raise RecipeError(f"say which arm of {run} with --arm: it has {', '.join(arms) or 'none that is trained'}.")
    return arms[chosen]


def _results(adapters: Sequence[Path]) -> str | None:
    """What the runs that the adapters lie in measured, in Markdown."""
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in adapters]
    arms = [folder for folder in dict.fromkeys(folders) if _in_run(folder)]
    return "\n".join(attack_table(arm.parents[1], arm.name) for arm in arms) or None


def _in_run(arm: Path) -> bool:
    return len(arm.parents) > 1 and (arm.parents[1] / "results.json").is_file()
