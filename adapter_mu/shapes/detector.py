"""The classifier that reads shape, colour, background and texture off a 32x32 picture."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adapter_mu.shapes.vocabulary import ATTRIBUTES

HEADS = {"shape": len(ATTRIBUTES["shape"]) + 1, "colour": 5, "background": 3, "texture": 2}
NOTHING = len(ATTRIBUTES["shape"])  # the extra shape class: noise, blends, broken pictures


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class ShapesDetector(nn.Module):
    """A four-convolution network with one head per attribute."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, width, 2),
            _block(width, 2 * width, 2),
            _block(2 * width, 4 * width, 2),
            _block(4 * width, 4 * width, 1),
            nn.Flatten(),
            nn.Linear(4 * width * 16, 96),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(96, size) for name, size in HEADS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute for images (N, 3, 32, 32) in [0, 1]; the last shape class is "nothing"."""
        features = self.body(images * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}


def load_shapes_detector(path: Path | None = None) -> ShapesDetector:
    """The detector in `path`, or else the one shipped with the package; in evaluation mode."""
    detector = ShapesDetector()
    stored = load_file(str(path or files("adapter_mu.shapes") / "checkpoints" / "detector.safetensors"))
    detector.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    return detector.eval().requires_grad_(False)


@torch.no_grad()
def read(detector: ShapesDetector, images: Tensor) -> dict[str, Tensor]:
    """The most likely class index per attribute, each (N,)."""
    return {name: logits.argmax(1) for name, logits in detector(images.float()).items()}
