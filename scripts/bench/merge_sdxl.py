"""How long, and in how much memory, a LoRA merges into an SDXL-shaped fp16 checkpoint (7 GB, random weights).

python scripts/bench/merge_sdxl.py [--form single-file] [--work /somewhere/with/16GB]

Makes the checkpoint and a LoRA over every layer of the UNet in a temporary folder, runs `adapter-mu merge` in a process
of its own, prints seconds and peak memory (the process's largest resident set) as JSON, and removes everything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from adapter_mu.data.cache import fingerprint_tensors
from adapter_mu.export.architecture import empty_model
from adapter_mu.export.checkpoint import open_checkpoint
from adapter_mu.export.streaming import Lazy, write_streamed
from adapter_mu.params.factors import factor_names
from adapter_mu.params.files import write_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from real_sizes import configuration_folder  # noqa: E402

RANK = 16


def random_checkpoint(folder: Path) -> None:
    """Every component of SDXL in fp16, small random values: 7 GB."""
    configuration_folder("sdxl", folder)
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        names = empty_model(folder, component).state_dict()
        weights = {name: _random(tuple(tensor.shape)) for name, tensor in names.items()}
        file = "model" if "text" in component else "diffusion_pytorch_model"
        write_streamed(folder / component / f"{file}.safetensors", weights, {}, lambda _: None)


def _random(shape: tuple[int, ...]) -> Lazy:
    return Lazy(torch.float16, shape, lambda: torch.empty(shape).uniform_(-0.02, 0.02).to(torch.float16))


def random_lora(folder: Path, out: Path) -> None:
    """Rank 16 on every Linear and Conv2d of the UNet, with the hash of its base as a run records it."""
    unet = open_checkpoint(str(folder)).components["unet"]
    layers = {name: module for name, module in empty_model(folder, "unet").named_modules() if hasattr(module, "weight")}
    tensors: dict[str, Tensor] = {}
    for name, module in layers.items():
        shape = module.weight.shape
        if len(shape) > 1:
            down, up = factor_names(name)
            tensors[down] = 0.01 * torch.randn(RANK, *shape[1:])
            tensors[up] = 0.01 * torch.randn(shape[0], RANK, *[1] * (len(shape) - 2))
    facts = {"adapter_mu_format": "1", "kind": "lora", "subset": "full", "rank": str(RANK), "alpha": "8.0"}
    facts |= {"base": folder.name, "base_dtype": "fp16", "concept": "nothing"}
    facts["base_hash"] = fingerprint_tensors((name, unet[name].make()) for name in sorted(unet))
    write_tensors(out, tensors, facts)


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds, and the process's peak resident set in GiB."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "adapter_mu.cli.main", *arguments], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return time.monotonic() - begin, peak / 2**20


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--form", choices=("diffusers", "single-file"), default="diffusers")
    parser.add_argument("--work", type=Path, help="where 16 GB fit (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        base, adapter = Path(work) / "sdxl-random", Path(work) / "adapter.safetensors"
        random_checkpoint(base)
        random_lora(base, adapter)
        out = Path(work) / ("merged.safetensors" if args.form == "single-file" else "merged")
        options = ["--base", str(base), "--out", str(out), "--format", args.form]
        seconds, peak = measure(["merge", str(adapter), *options])
        size = sum(file.stat().st_size for file in base.rglob("*.safetensors"))
    result = {"form": args.form, "base_gb": round(size / 1e9, 2), "seconds": round(seconds, 1)}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(json.dumps(result | {"peak_gib": round(peak, 2), "threads": threads, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
