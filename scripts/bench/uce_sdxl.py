"""How long, and in how much memory, UCE edits all 140 key and value matrices of SDXL: 1 erased, 500 preserved concepts.

    OMP_NUM_THREADS=2 python scripts/bench/uce_sdxl.py --out runs/bench

The UNet has SDXL's real shape on the meta device, only its cross-attention keys and values hold (random) numbers. The
text encoders are replaced by one that makes up embeddings of the real shape, 77 rows of 2048 per prompt: what is
measured is the edit, from embeddings to factors. Writes uce_sdxl.json and uce_sdxl.md; memory is the process's largest
resident set, libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adapter_mu.methods.closed_form import key_value_weights
from adapter_mu.methods.uce import Uce, UceOptions
from adapter_mu.models import LoadedModel, load_config

TOKENS, WIDTH, POOLED = 77, 2048, 1280
SECONDS, GIB = 60, 6.0  # the bars of issue 4, on two cores


class MadeUpText:
    """Answers like SDXL's pipeline and its tokenizer; the rows of a prompt are nearly parallel, as CLIP's are."""

    model_max_length, vae_scale_factor = TOKENS, 8
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
    text_encoder_2 = SimpleNamespace(config=SimpleNamespace(projection_dim=POOLED))

    def __init__(self, unet: nn.Module) -> None:
        self.unet, self.tokenizer = unet, self
        self.generator = torch.Generator().manual_seed(0)
        self.common = 0.6 * torch.randn(1, TOKENS, WIDTH, generator=self.generator)

    def encode_prompt(self, prompts: list[str], **_: Any) -> tuple[Tensor, ...]:
        """(embeds, negative embeds, pooled, negative pooled)."""
        embeds = self.common + 0.3 * torch.randn(len(prompts), TOKENS, WIDTH, generator=self.generator)
        pooled = torch.zeros(len(prompts), POOLED)
        return embeds, embeds, pooled, pooled

    def __call__(self, texts: list[str], **_: Any) -> SimpleNamespace:
        """Every prompt has four words."""
        return SimpleNamespace(attention_mask=torch.ones(len(texts), 6))

    def _get_add_time_ids(self, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(1, 6)


def sdxl_keys_and_values() -> Any:
    """SDXL's UNet without numbers but for the matrices that UCE edits."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(load_config("sdxl")).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for layer, weight in key_value_weights(unet).items():
        drawn = torch.randn(weight.shape, generator=generator).mul_(WIDTH**-0.5)
        unet.get_submodule(layer).weight = nn.Parameter(drawn, requires_grad=False)
    return unet


def bench(rows: str, preserved: int) -> dict[str, Any]:
    """One edit, timed."""
    unet = sdxl_keys_and_values()
    model = LoadedModel("sdxl", MadeUpText(unet), "sdxl-random", "memory")
    names = [f"concept {i}" for i in range(preserved)]
    method = Uce(UceOptions(erase=["erased"], preserve=names, rows=rows))
    begin, cpu = time.monotonic(), time.process_time()
    adapter = method.start(model, [])
    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
    downs = [tensor for name, tensor in adapter.state_dict().items() if "lora_A" in name]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "rows": rows,
        "preserved": preserved,
        "matrices": len(downs),
        "rank": len(downs[0]),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(peak, 2),
        "within_bars": seconds < SECONDS and peak < GIB,
    }


def main() -> None:
    """Run and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", choices=("paper", "subject", "legacy"), default="paper")
    parser.add_argument("--preserved", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    result = bench(args.rows, args.preserved)
    result["machine"] = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,"
        f" load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    line = "| {rows} | {preserved} | {matrices} | {rank} | {seconds} | {cpu_seconds} | {peak_gib} |\n".format_map(
        result
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "uce_sdxl.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    (args.out / "uce_sdxl.md").write_text(line, encoding="utf-8")
    print(json.dumps(result), line, sep="\n", end="")


if __name__ == "__main__":
    main()
