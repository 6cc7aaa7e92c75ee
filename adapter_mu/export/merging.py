"""From base and adapters to a merged model on disk, in the memory of a few weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from adapter_mu.data.cache import write_text
from adapter_mu.export.assemble import Rounding, Scaled, assemble
from adapter_mu.export.checkpoint import Checkpoint
from adapter_mu.export.metadata import modelspec
from adapter_mu.export.outputs import single_file_tensors, write_folder, write_single_file
from adapter_mu.export.staging import staged
from adapter_mu.export.streaming import payload_size
from adapter_mu.export.verify import Verdict, verify_file

Form = Literal["diffusers", "single-file"]
# Headers, configuration and tokenizers.
_ROOM = 1 << 25


@dataclass(frozen=True)
class Merged:
    """What was written and how well."""

    out: Path
    rounding: list[Rounding]
    verdict: Verdict | None

    def __str__(self) -> str:
        """For people."""
        worst, lost = max(self.rounding, key=lambda r: r.relative), max(self.rounding, key=lambda r: r.lost)
        lines = [str(self.out), f"{len(self.rounding)} weights edited"]
        if worst.relative:
            lines[1] += (
                f"; largest relative rounding {worst.relative:.1e} ({worst.component} {worst.name}),"
                f" largest share of an edit lost to it {lost.lost:.2%} ({lost.component} {lost.name})"
            )
        return "\n".join([*lines, *([str(self.verdict)] if self.verdict else [])])


def merge_to(
    out: Path,
    base: Checkpoint,
    adapters: Scaled,
    *,
    form: Form = "diffusers",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    card: str | None = None,
) -> Merged:
    """Write base + adapters; the output appears complete and verified, or not at all.

    Beside the weights lies a JSON with every edited weight's rounding (`merge.json` in a folder, `OUT.merge.json`).

    Args:
        out: a folder or a .safetensors file, which must not exist.
        base: read while it is written; never changed.
        adapters: with their scales; their edits add up.
        form: a diffusers folder or the original single-file layout.
        dtype: of all weights; None keeps the base's.
        verify: compare noise predictions with base + live adapters before the output gets its name.
        card: text of the model card, README.md in a folder and OUT.md beside a file.

    Raises:
        UserError: `out` exists, or the disk is full.
        ModelError: values that are not finite, a damaged base, or a written model that does not predict the same.
    """
    rounding: list[Rounding] = []
    components = assemble(base, adapters, dtype, rounding)
    size = payload_size(single_file_tensors(base, components))
    metadata = modelspec(base, [edits for edits, _ in adapters], lora=False, original=form == "single-file")
    write: Any = write_folder if form == "diffusers" else write_single_file
    with staged(out, size + _ROOM) as part:
        with progress_bar("merge", size) as advance:
            write(base, components, part, metadata, advance)
        verdict = verify_file(part, base, adapters, dtype) if verify else None
        merged = Merged(out, rounding, verdict)
        if form == "diffusers":
            _notes(merged, part / "merge.json", part / "README.md", card)
    if form == "single-file":
        _notes(merged, out.with_suffix(".merge.json"), out.with_suffix(".md"), card)
    return merged


def _notes(merged: Merged, report: Path, readme: Path, card: str | None) -> None:
    verdict = asdict(merged.verdict) if merged.verdict else None
    write_text(report, json.dumps({"verify": verdict, "rounding": [asdict(r) for r in merged.rounding]}, indent=1))
    if card:
        write_text(readme, card)


@contextmanager
def progress_bar(title: str, size: int) -> Iterator[Any]:
    """A bar over `size` bytes on stderr; gives the function that advances it."""
    with tqdm(total=size, desc=title, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        yield bar.update
