"""One real meta step of an SDXL-shaped UNet with random bf16 weights: live bytes by stage against `plan`'s.

    python scripts/bench/sdxl_memory.py --latents 32 --out runs/bench                        # on a CPU
    python scripts/bench/sdxl_memory.py --latents 128 --device cuda --cards 24 16 12         # on a GPU

LoRA of rank 16 on the attention, batch 1, one attacker step, the paper's forget term. On a CPU live bytes are counted
as they arise; on a GPU `torch.cuda.max_memory_allocated` is read, and the step is repeated in a process that may use
no more than each of the --cards (gigabytes). Writes sdxl_memory.json and sdxl_memory.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from adapter_mu.live import LiveBytes
from adapter_mu.models import load_config
from adapter_mu.params import make_adapter
from adapter_mu.plan import GIB, Plan, plan
from adapter_mu.plan.skeleton import StandIn, sets, skeleton
from adapter_mu.recipe import Recipe, load_recipe
from adapter_mu.stages.products import set_up
from adapter_mu.train import Trainer


def recipe() -> Recipe:
    """What is measured."""
    lean = ("arms=null", "evaluate=null", "attacks=null", "train.batch_size=1", "train.checkpointing=true")
    terms = ("train.retain_related=0", "train.retain_unrelated=0", "meta.keep_unconditional=0")
    meta = ("meta.related=0", "meta.unrelated=0", "meta.attacker.space=adapter", "meta.attacker.required_drop=0")
    base = ("base.model=sdxl", "base.dtype=bf16", "data.keep_only_shown=false", "data.sampler.batch_size=1")
    adapter = ("adapter.kind=lora", r"adapter.subset=attn[12]\.", "adapter.rank=16", "meta.attacker.steps=1")
    return load_recipe("shapes/demo", [*lean, *terms, *meta, *base, *adapter])


def step(device: str, latents: int) -> dict[str, Any]:
    """Make the model, take one step; peaks in bytes and seconds."""
    made = recipe()
    torch.manual_seed(0)
    model = skeleton(load_config("sdxl"), torch.bfloat16, device, latents)
    a = made.adapter
    adapter = make_adapter(model.unet, a.kind, a.subset, rank=a.rank)
    with set_up(model, made, adapter, checked=False) as (ready, own):
        trainer = Trainer(ready, StandIn(ready), own, sets(ready), made, state_file=Path(), log_file=Path())
        fixed = [*ready.unet.parameters(), *ready.unet.buffers(), *trainer.theta.values()]
        resting = sum(tensor.nbytes for tensor in fixed)
        start = time.perf_counter()
        if device == "cpu":
            with LiveBytes(fixed) as live:
                trainer.step(0)
            peaks = {name: resting + peak for name, peak in live.peaks.items() if name}
            peak = resting + live.peak
        else:
            torch.cuda.reset_peak_memory_stats()
            trainer.step(0)
            torch.cuda.synchronize()
            peaks, peak = {}, torch.cuda.max_memory_allocated()
        seconds = time.perf_counter() - start
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"device": device, "latents": latents, "peak": peak, "peaks": peaks, "s": seconds, "resident": resident}


def on_cards(latents: int, cards: list[float]) -> dict[str, bool]:
    """Whether the step completes where the process may use no more than so many gigabytes."""
    found = {}
    for card in cards:
        command = [sys.executable, __file__, "--device", "cuda", "--latents", str(latents), "--limit", str(card)]
        found[f"{card:g} GB"] = subprocess.run(command, check=False).returncode == 0
    return found


def table(measured: dict[str, Any], predicted: Plan) -> str:
    """Markdown; the first step's optimizer has no moments before it, which `plan` counts throughout."""
    moments = predicted.always["optimizer"]
    lines = ["| stage | measured GiB | plan GiB | ratio |", "|---|---|---|---|"]
    for name, own in measured["peaks"].items():
        expected = predicted.peaks[name] - (0 if name == "optimizer" else moments)
        lines.append(f"| {name} | {own / GIB:.2f} | {expected / GIB:.2f} | {expected / own:.3f} |")
    whole = max(size for name, size in predicted.peaks.items() if name != "cache") - moments
    lines.append(f"| peak | {measured['peak'] / GIB:.2f} | {whole / GIB:.2f} | {whole / measured['peak']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Run and write both files; with --limit, only take the step within it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--cards", type=float, nargs="*", default=[])
    parser.add_argument("--limit", type=float, help="gigabytes that this process may use of its GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    if args.limit:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.limit * 1e9 / total))
        step("cuda", args.latents)
        return
    measured = step(args.device, args.latents)
    text = table(measured, plan(recipe(), size=8 * args.latents))
    measured["fits"] = on_cards(args.latents, args.cards)
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    head = f"SDXL's UNet, bf16, {args.latents}x{args.latents} latents, {where}, torch {torch.__version__}"
    text = f"{head}: {measured['s']:.0f} s, {measured['resident'] / GIB:.1f} GiB resident\n\n{text}\n"
    text += "".join(
        f"\n{card}: {'completes' if fine else 'does not complete'}" for card, fine in measured["fits"].items()
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sdxl_memory.json").write_text(json.dumps(measured, indent=2), encoding="utf-8")
    (args.out / "sdxl_memory.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
