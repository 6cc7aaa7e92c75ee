"""Draw scenes as 32x32 pictures from signed distances, anti-aliased."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapter_mu.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, Scene

RESOLUTION = 32
STRIPE_PERIOD_PIXELS = 8
RADIUS = (0.56, 0.80)
JITTER = 0.14


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon: even-odd rule for the sign, nearest edge for the size."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[-1:] + corners[:-1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (wx - ex * along).square() + (wy - ey * along).square())
        crosses = ((ay > y) != (by > y)) & (wx < ex * wy / (ey if ey else 1e-9))
        inside ^= crosses
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def _spikes(count: int, inner: float, outer: float) -> list[tuple[float, float]]:
    radii = (outer, inner) if inner else (outer,)
    total = count * len(radii)
    angles = [2 * math.pi * k / total for k in range(total)]
    return [(radii[k % len(radii)] * math.sin(a), -radii[k % len(radii)] * math.cos(a)) for k, a in enumerate(angles)]


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the outline in units of the shape's radius, negative inside."""
    radius = torch.hypot(x, y)
    if shape == "ring":
        return (radius - 0.70).abs() - 0.24
    if shape == "circle":
        return radius - 0.94
    if shape == "crescent":
        return torch.maximum(radius - 0.98, 0.80 - torch.hypot(x - 0.48, y))
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.82
    if shape == "triangle":
        return _polygon(x, y - 0.15, _spikes(3, 0.0, 1.12))
    if shape == "cross":
        bar = torch.maximum(x.abs() - 0.95, y.abs() - 0.29)
        return torch.minimum(bar, torch.maximum(x.abs() - 0.29, y.abs() - 0.95))
    return _polygon(x, y, _spikes(5, 0.46, 1.12))


def draw(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, 32, 32) in [0, 1]; position, radius and stripe phase jitter with `generator`."""
    count = len(scenes)
    axis = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    jitter = torch.rand(count, 4, generator=generator)
    centre = (jitter[:, :2] * 2 - 1) * JITTER
    radius = torch.tensor([RADIUS[s.size] for s in scenes]) + (jitter[:, 2] - 0.5) * 0.06
    x = (grid_x - centre[:, 0, None, None]) / radius[:, None, None]
    y = (grid_y - centre[:, 1, None, None]) / radius[:, None, None]
    shape = torch.tensor([s.shape for s in scenes])
    distance = torch.zeros_like(x)
    for index in shape.unique().tolist():
        rows = shape == index
        distance[rows] = _distance(SHAPES[index], x[rows], y[rows])
    pixel = (2 / RESOLUTION) / radius[:, None, None]
    cover = (0.5 - distance / pixel).clamp(0, 1)[:, None]
    waves = torch.sin((grid_y + 2 * jitter[:, 3, None, None]) * math.pi * RESOLUTION / STRIPE_PERIOD_PIXELS)
    striped = torch.tensor([s.texture == 1 for s in scenes])[:, None, None, None]
    colour = torch.tensor([tuple(COLOURS.values())[s.colour] for s in scenes])[:, :, None, None]
    colour = colour * (1 - 0.55 * (striped & (waves > 0)[:, None]).float())
    background = torch.tensor([tuple(BACKGROUNDS.values())[s.background] for s in scenes])[:, :, None, None]
    return cover * colour + (1 - cover) * background
