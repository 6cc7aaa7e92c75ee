"""What one outer step costs with the exact meta gradient, against the first-order one.

    python scripts/bench/outer_step.py --width 0.5 --latents 32 --out runs/bench

ESD's loss, a LoRA of rank 8 on the attention of a random SD-1-shaped UNet, float32, batch 1, checkpointed, one
attacker step, one thread; the paper's objective (eq. 3), and its forget term alone. Processor seconds, best of
--repeats. Writes outer_step.json and outer_step.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from adapter_mu.models import load_config
from adapter_mu.params import make_adapter
from adapter_mu.plan.skeleton import StandIn, sets, skeleton
from adapter_mu.recipe import Recipe, load_recipe
from adapter_mu.stages.products import set_up
from adapter_mu.train import Trainer

LEAN = ("arms=null", "evaluate=null", "attacks=null", "train.batch_size=1", "train.checkpointing=true")
PAPER = ("train.retain_related=0", "train.retain_unrelated=0", "meta.keep_unconditional=0", "meta.bound=none")
ATTACKER = ("meta.attacker.space=adapter", "meta.attacker.steps=1", "meta.attacker.required_drop=0")
OBJECTIVES = {
    "eq. 3": ("meta.related=1", "meta.unrelated=1"),
    "forget term alone": ("meta.related=0", "meta.unrelated=0"),
}


def recipe(objective: str, order: str) -> Recipe:
    """The demo's, stripped to the paper's objective."""
    adapter = ("adapter.kind=lora", "adapter.subset=attn1|attn2", "adapter.rank=8", f"meta.order={order}")
    return load_recipe("shapes/demo", [*LEAN, *PAPER, *ATTACKER, *adapter, *OBJECTIVES[objective]])


def seconds(config: dict[str, Any], latents: int, made: Recipe, repeats: int) -> float:
    """Processor time of one step, the best of some; the first warms up."""
    torch.manual_seed(0)
    model = skeleton(config, torch.float32, "cpu", latents)
    adapter = make_adapter(model.unet, made.adapter.kind, made.adapter.subset, rank=made.adapter.rank)
    found = []
    with set_up(model, made, adapter, checked=False) as (ready, own):
        trainer = Trainer(ready, StandIn(ready), own, sets(ready), made, state_file=Path(), log_file=Path())
        for step in range(repeats + 1):
            start = time.process_time()
            trainer.step(step)
            found.append(time.process_time() - start)
    return min(found[1:])


def main() -> None:
    """Run and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("sd1")
    config["block_out_channels"] = tuple(int(args.width * count) for count in config["block_out_channels"])
    rows = []
    for objective in OBJECTIVES:
        first, exact = (
            seconds(config, args.latents, recipe(objective, order), args.repeats) for order in ("first_order", "exact")
        )
        rows.append({"objective": objective, "first_order": first, "exact": exact, "ratio": exact / first})
        print(rows[-1], flush=True)
    lines = ["| objective | first order, s | exact, s | ratio |", "|---|---|---|---|"]
    lines += [f"| {r['objective']} | {r['first_order']:.1f} | {r['exact']:.1f} | {r['ratio']:.2f} |" for r in rows]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "outer_step.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    (args.out / "outer_step.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
