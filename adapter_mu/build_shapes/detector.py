"""Train the shapes detector on drawings, with augmentations that stand for a sampler's small defects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from adapter_mu.shapes.detector import HEADS, NOTHING, ShapesDetector, read
from adapter_mu.shapes.draw import RESOLUTION, draw
from adapter_mu.shapes.vocabulary import Scene, random_scenes


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Class indices per head, each (N,)."""
    return {name: torch.tensor([getattr(scene, name) for scene in scenes]) for name in HEADS}


def _shuffled_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).reshape(len(images), 3, 16, 8, 8)
    patches = patches[:, :, torch.randperm(16, generator=generator)].reshape(len(images), 3, 4, 4, 8, 8)
    return patches.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


def not_a_shape(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures the detector must call "nothing": flats, clouds, noise, shuffled and heavily blurred drawings."""
    count = len(images)
    noise = torch.rand(images.shape, generator=generator)
    flat = torch.rand(count, 3, 1, 1, generator=generator).expand(images.shape)
    cloud = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=RESOLUTION, mode="bilinear")
    blurred = F.interpolate(F.avg_pool2d(images, 16), size=RESOLUTION, mode="bilinear")
    kinds = torch.stack(
        [0.9 * flat + 0.1 * noise, cloud, 0.6 * noise + 0.4 * images, _shuffled_patches(images, generator), blurred]
    )
    return kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mild blur, contrast, tint and noise."""
    count = len(images)

    def per_image(channels: int = 1) -> Tensor:
        return torch.rand(count, channels, 1, 1, generator=generator)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.where(per_image() < 0.3, blurred, images)
    noise = 0.06 * torch.randn(images.shape, generator=generator) * per_image()
    images = (images - 0.5) * (0.75 + 0.4 * per_image()) + 0.5 + 0.1 * (per_image(3) - 0.5) + noise
    return images.clamp(0, 1)


def train_detector(seed: int, steps: int = 1500, batch_size: int = 128) -> ShapesDetector:
    """AdamW with a one-cycle rate on 20,000 drawings; one sixth of each batch is "nothing"."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(20_000, generator)
    pictures, target = draw(scenes, generator), labels(scenes)
    detector = ShapesDetector()
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    junk = batch_size // 6
    for _ in trange(steps, desc="detector", mininterval=5):
        rows = torch.randint(len(pictures), (batch_size,), generator=generator)
        images, shape = augment(pictures[rows], generator), target["shape"][rows].clone()
        images[:junk] = not_a_shape(pictures[rows[:junk]], generator)
        shape[:junk] = NOTHING
        logits = detector(images)
        loss = F.cross_entropy(logits["shape"], shape)
        for name in HEADS:
            if name != "shape":
                loss = loss + 0.3 * F.cross_entropy(logits[name][junk:], target[name][rows[junk:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return detector.eval()


def accuracy(detector: ShapesDetector, count: int, seed: int) -> dict[str, float]:
    """Share of fresh drawings read right, per attribute, in percent."""
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(count, generator)
    seen, target = read(detector, draw(scenes, generator)), labels(scenes)
    return {name: 100 * (seen[name] == target[name]).float().mean().item() for name in HEADS}
