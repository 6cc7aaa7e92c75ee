"""Rebuild everything that ships: the detector and both checkpoints, then measure the bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapter_mu.build_shapes.detector import accuracy, train_detector
from adapter_mu.build_shapes.quality import quality
from adapter_mu.build_shapes.unet import new_pipeline, train_unet
from adapter_mu.build_shapes.vae import train_vae
from adapter_mu.evaluate.pictures import SHOWN, save_strip
from adapter_mu.models import LoadedModel, load_model
from adapter_mu.shapes.detector import ShapesDetector, load_shapes_detector


def build_all(out: Path, seed: int, unet_steps: int) -> None:
    """Write `detector.safetensors`, `shapes-sd/` and `shapes-sdxl/` into `out`; about 45 minutes on one core.

    One thread and flushed denormals, so that the same seed gives the same files on the same machine.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    save_detector(train_detector(seed + 11), out / "detector.safetensors")
    vae = train_vae(seed)
    for kind in ("sd", "sdxl"):
        pipeline = new_pipeline(kind, vae, seed)
        unet = train_unet(LoadedModel(kind, pipeline, f"shapes-{kind}", ""), seed, steps=unet_steps)
        pipeline.register_modules(unet=unet)
        save_pipeline(pipeline, out / f"shapes-{kind}")
        vae.float()


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """UNet and VAE in fp16, text encoders in fp32.

    Stock diffusers reads its own parts as fp32 whatever the file says, but transformers keeps the file's type: in
    fp16 the two would not fit together.
    """
    pipeline.to(torch.float16)
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder"):
            part.float()
    pipeline.save_pretrained(folder)


def save_detector(detector: ShapesDetector, path: Path) -> None:
    """Weights in fp16, counters as they are."""
    save_file({n: t.half() if t.is_floating_point() else t for n, t in detector.state_dict().items()}, path)


def check(folder: Path, images: int, pictures: Path | None = None) -> bool:
    """Print every bar for the detector and the checkpoints in `folder`; whether all are met."""
    detector = load_shapes_detector(folder / "detector.safetensors")
    read_right = accuracy(detector, 5000, seed=78)
    print("detector on 5,000 fresh drawings:", {name: f"{share:.2f}" for name, share in read_right.items()})
    met = min(read_right.values()) >= 99.5
    for kind in ("sd", "sdxl"):
        table, shown = quality(load_model(str(folder / f"shapes-{kind}")), detector, images)
        for shape, shares in table.items():
            print(f"shapes-{kind}", f"{shape:9}", {name: f"{share:.1f}" for name, share in shares.items()})
            met &= min(shares[name] for name in ("shape", "colour", "background")) >= 95
        if pictures:
            save_strip(list(shown.split(SHOWN)), pictures / f"shapes-{kind}.png")
    return met
