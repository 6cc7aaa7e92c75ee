"""Methods of the Hessian-vector product side by side: peak bytes, processor seconds, relative error.

    python scripts/bench/hvp.py --width 0.5 --latents 32 --out runs/bench

LoRA of rank 8 on the attention of a random SD-1-shaped UNet, float32, batch 1, one thread. Times are processor time of
this process, the best of --repeats; the error is against reverse-over-reverse. Then the same UNet rounded to bfloat16:
the error of a gradient and of a product against float32. Writes hvp.json and hvp.md.

TorchOpt's differentiable step is measured where it can be imported; it is no dependency of adapter_mu:
`pip install --no-deps --target /tmp/torchopt torchopt optree graphviz`, then PYTHONPATH=/tmp/torchopt.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
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


def unrolled_step(loss: Any, theta: dict[str, Tensor], v: dict[str, Tensor]) -> Any:
    """TorchOpt's differentiable SGD step theta' = theta - g; the gradient of <v, theta'> is v - H v."""
    import torchopt

    leaves = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
    optimizer = torchopt.sgd(lr=1.0)
    state = optimizer.init(leaves)
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    updates, _ = optimizer.update(dict(zip(leaves, found, strict=True)), state, params=leaves, inplace=False)
    moved = torchopt.apply_updates(leaves, updates, inplace=False)
    outer = torch.stack([(v[name] * moved[name]).sum() for name in leaves]).sum()
    result = torch.autograd.grad(outer, list(leaves.values()))
    return {name: v[name] - bar for name, bar in zip(leaves, result, strict=True)}, None


def methods(unet: Any, loss: Any, theta: dict[str, Tensor], v: dict[str, Tensor]) -> dict[str, tuple[Any, Any]]:
    """Name -> (how to set the UNet up, what to run)."""

    def announced() -> None:
        announce_blocks(unet, pair_block)

    def gradient() -> Any:
        return None, value_and_gradient(loss, theta)[1]

    found = {
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
    if importlib.util.find_spec("torchopt"):
        found["TorchOpt, unrolled step"] = plain(unet, False), lambda: unrolled_step(loss, theta, v)
    else:
        print("TorchOpt is not installed here, so its step is left out; the head of this file says how to get it.")
    return found


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


def rounding(width: float, latents: int, seeds: int = 3) -> dict[str, float]:
    """Relative errors in bfloat16 against float32 on the same rounded UNet, over some batches: gradient and product."""
    generator = torch.Generator().manual_seed(2)
    shapes = (1, 4, latents, latents), (1, 4, latents, latents), (1, 77, 768)
    batches = [[torch.randn(*shape, generator=generator) for shape in shapes] for _ in range(seeds + 1)]
    found: dict[torch.dtype, list[list[dict[str, Tensor]]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        unet = unet_of(width).bfloat16().to(dtype)
        announce_blocks(unet, pair_block)
        lora = Lora(unet, "attn1|attn2", rank=8)
        twin = AttachedLora(unet, lora)
        own = torch.Generator().manual_seed(3)
        theta = {n: t.detach() + 0.02 * torch.randn(t.shape, generator=own) for n, t in lora.parameters().items()}

        def loss(params: dict[str, Tensor], batch: list[Tensor], unet: Any = unet, twin: Any = twin) -> Tensor:
            x, noise, text = batch
            inputs = x.to(unet.dtype), torch.tensor([300]), text.to(unet.dtype)
            output = call_with(unet, twin.materialize(params), *inputs, return_dict=False)[0]
            return (output.float() - noise).square().mean()

        gradients = [value_and_gradient(lambda p, b=b: loss(p, b), theta)[1] for b in batches]
        along = found[torch.float32][0] if found else gradients  # the same v for both, of the next batch
        products = [
            PairCheckpoint()(lambda p, b=b: loss(p, b), theta, along[n + 1])[0] for n, b in enumerate(batches[:-1])
        ]
        found[dtype] = [gradients, products]
    names = ("gradient", "product")
    return {
        name: sum(
            norm({n: c[n] - f[n] for n in f}) / norm(f) for f, c in zip(fine[:seeds], coarse[:seeds], strict=True)
        )
        / seeds
        for name, fine, coarse in zip(names, found[torch.float32], found[torch.bfloat16], strict=True)
    }


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
    errors = rounding(args.width, args.latents)
    title = f"SD-1 UNet at {args.width:g} width, {args.latents}x{args.latents} latents, float32 ({machine})"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hvp.json").write_text(
        json.dumps({"setting": title, "rows": rows, "bfloat16": errors}, indent=2), encoding="utf-8"
    )
    said = f"\nIn bfloat16: a gradient is off by {errors['gradient']:.1e}, a product by {errors['product']:.1e}.\n"
    (args.out / "hvp.md").write_text(table(rows, title) + said, encoding="utf-8")
    print(table(rows, title) + said)


if __name__ == "__main__":
    main()
