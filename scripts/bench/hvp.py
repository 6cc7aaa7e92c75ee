"""Methods of the Hessian-vector product side by side: peak bytes, processor seconds, relative error.

    python scripts/bench/hvp.py --width 0.5 --latents 32 --out runs/bench

LoRA of rank 8 on the attention of a random SD-1-shaped UNet, float32, batch 1, one thread. Times are processor time of
this process, the best of --repeats; the error is against reverse-over-reverse. Writes hvp.json and hvp.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapter_mu.live import LiveBytes
from adapter_mu.meta import PairCheckpoint, pair_block, product
from adapter_mu.meta.tensors import norm, value_and_gradient
from adapter_mu.models import announce_blocks, load_config, prepare_for_meta
from adapter_mu.params import AttachedLora, Lora, call_with

MIB = 2**20


def unet_of(width: float) -> Any:
    """SD 1's UNet with `width` times its channels, random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    config = load_config("sd1")
    channels = tuple(int(width * count) for count in config["block_out_channels"])
    return UNet2DConditionModel.from_config(config | {"block_out_channels": channels}).requires_grad_(False).eval()


def plain(unet: Any, checkpointing: bool) -> Callable[[], None]:
    """Explicit attention, with or without checkpoints."""
    return lambda: prepare_for_meta(unet, checkpointing=checkpointing)


def methods(unet: Any, loss: Any, theta: dict[str, Tensor], v: dict[str, Tensor]) -> dict[str, tuple[Any, Any]]:
    """Name -> (how to set the UNet up, what to run)."""

    def announced() -> None:
        announce_blocks(unet, pair_block)

    def gradient() -> Any:
        return None, value_and_gradient(loss, theta)[1]

    return {
        "gradient, fused attention, checkpoints": (announced, gradient),
        "gradient, explicit attention, checkpoints": (plain(unet, True), gradient),
        "pair checkpoint": (announced, lambda: PairCheckpoint()(loss, theta, v)),
        "pair checkpoint, 256 query rows": (announced, lambda: PairCheckpoint(256)(loss, theta, v)),
        "finite differences": (announced, lambda: product("finite_difference", loss, theta, v)),
        "reverse over reverse, checkpoints": (
            plain(unet, True),
            lambda: product("reverse_over_reverse", loss, theta, v),
        ),
        "reverse over reverse": (plain(unet, False), lambda: product("reverse_over_reverse", loss, theta, v)),
    }


def measure(work: Callable[[], Any], known: list[Tensor], repeats: int) -> tuple[int, float, Any]:
    """Peak bytes, best processor seconds, and the result."""
    with LiveBytes(known) as live:
        result = work()
    best = float("inf")
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return live.peak, best, result[0]


def bench(width: float, latents: int, repeats: int) -> list[dict[str, Any]]:
    """One row per method."""
    unet = unet_of(width)
    lora = Lora(unet, "attn1|attn2", rank=8)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    theta = {name: t.detach() + 0.02 * draw(*t.shape) for name, t in lora.parameters().items()}
    v = {name: draw(*t.shape) for name, t in theta.items()}
    x, noise, text = draw(1, 4, latents, latents), draw(1, 4, latents, latents), draw(1, 77, 768)
    known = [*unet.parameters(), *theta.values(), *v.values(), x, noise, text]
    # The twin that carries the factors is what runs: it is the one to set up.
    twin = AttachedLora(unet, lora)
    module = twin.materialize(theta).module  # type: ignore[attr-defined]

    def loss(params: dict[str, Tensor]) -> Tensor:
        output = call_with(unet, twin.materialize(params), x, torch.tensor([300]), text, return_dict=False)[0]
        return (output - noise).square().mean()

    rows, results = [], {}
    for name, (prepare, work) in methods(module, loss, theta, v).items():
        prepare()
        peak, seconds, results[name] = measure(work, known + list(module.parameters()), repeats)
        rows.append({"method": name, "peak_mib": peak / MIB, "seconds": seconds})
        print(rows[-1], flush=True)
    exact = results["reverse over reverse"]
    for row in rows:
        found = results[row["method"]]
        if found is not None:
            row["error"] = norm({n: found[n] - exact[n] for n in exact}) / norm(exact)
    return rows


def table(rows: list[dict[str, Any]], title: str) -> str:
    """Markdown; the second ratio is against the gradient with explicit attention."""
    fused, explicit = rows[0]["seconds"], rows[1]["seconds"]
    lines = [title, "", "| method | peak MiB | s | x fused gradient | x explicit gradient | relative error |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        error = f"{row['error']:.1e}" if "error" in row else ""
        ratios = f"{row['seconds'] / fused:.2f} | {row['seconds'] / explicit:.2f}"
        lines.append(f"| {row['method']} | {row['peak_mib']:.0f} | {row['seconds']:.2f} | {ratios} | {error} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = bench(args.width, args.latents, args.repeats)
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}"
    )
    title = f"SD-1 UNet at {args.width:g} width, {args.latents}x{args.latents} latents, float32 ({machine})"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hvp.json").write_text(json.dumps({"setting": title, "rows": rows}, indent=2), encoding="utf-8")
    (args.out / "hvp.md").write_text(table(rows, title), encoding="utf-8")
    print(table(rows, title))


if __name__ == "__main__":
    main()
