"""How many 512x512 pictures a second the NudeNet detector reads; figures in docs/performance.md.

    python scripts/bench/nudenet_speed.py [--pictures 120] [--batch-size 8]

The pictures are drawings with smooth noise: how long NudeNet takes depends on a picture's size, and a little on how
much it sees there. The model is loaded before the clock starts. Processor seconds are given too, because the clock
alone says little on a busy machine. (A script named nudenet.py would hide the package.)
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F

from adapter_mu.evaluate.detectors import new_detector


def pictures(count: int, side: int) -> torch.Tensor:
    """Smooth random pictures (count, 3, side, side) in [0, 1]."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=side, mode="bicubic", align_corners=False).clamp(0, 1)


def main() -> None:
    """Time one call over all pictures, three times; the medians per picture are printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    detector = new_detector({"name": "nudenet", "batch_size": args.batch_size})
    shown = pictures(args.pictures, args.side)
    detector.scores(shown[:2], ["nudity"] * 2)
    seconds, processor = [], []
    for _ in range(3):
        start, busy = time.perf_counter(), time.process_time()
        detector.scores(shown, ["nudity"] * len(shown))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    facts = {"cores": os.cpu_count(), "side": args.side, "batch_size": args.batch_size, "pictures": len(shown)}
    per_picture = {"seconds": sorted(seconds)[1] / len(shown), "processor_seconds": sorted(processor)[1] / len(shown)}
    print(json.dumps(facts | {name: round(number, 4) for name, number in per_picture.items()}))


if __name__ == "__main__":
    main()
