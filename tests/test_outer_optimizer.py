"""Adam's moments elsewhere or in 8 bits, and that a saved state goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapter_mu.errors import RecipeError
from adapter_mu.live import LiveBytes
from adapter_mu.params import load_optimizer_state, optimizer_state, outer_optimizer
from adapter_mu.params.files import read_tensors, write_tensors
from adapter_mu.params.outer_optimizer import AdamElsewhere

CPU = torch.device("cpu")


def leaves(size: int = 100) -> dict[str, Tensor]:
    # One name ends in another: their states must not be mixed up.
    return {n: torch.linspace(-1, k + 1, size).requires_grad_() for k, n in enumerate(("in.weight", "block.in.weight"))}


def walk(theta: dict[str, Tensor], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for tensor in theta.values():
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_it_is_pytorchs_adam_to_the_bit(elsewhere: bool) -> None:
    theta, reference = leaves(), leaves()
    walk(theta, outer_optimizer(theta, 0.01, moments_on=CPU if elsewhere else None), range(5))
    walk(reference, torch.optim.Adam(list(reference.values()), 0.01), range(5))
    assert all(torch.equal(theta[n], reference[n]) for n in theta)


@pytest.mark.parametrize("kind", ["adam", "elsewhere", "adam8bit"])
def test_a_saved_state_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    if kind == "adam8bit":
        pytest.importorskip("bitsandbytes")

    def new(theta: dict[str, Tensor]) -> torch.optim.Optimizer:
        moments = CPU if kind == "elsewhere" else None
        return outer_optimizer(theta, 0.01, eight_bit=kind == "adam8bit", moments_on=moments)

    theta = leaves(8192)
    optimizer = new(theta)
    walk(theta, optimizer, range(3))
    write_tensors(tmp_path / "state.safetensors", optimizer_state(optimizer, theta), {})
    again = {n: t.detach().clone().requires_grad_() for n, t in theta.items()}
    walk(theta, optimizer, range(3, 6))
    resumed = new(again)
    load_optimizer_state(resumed, again, read_tensors(tmp_path / "state.safetensors")[0])
    walk(again, resumed, range(3, 6))
    assert all(torch.equal(theta[n], again[n]) for n in theta)


def test_eight_bits_stay_near_32_and_take_a_quarter() -> None:
    pytest.importorskip("bitsandbytes")
    theta, reference = leaves(8192), leaves(8192)
    optimizer = outer_optimizer(theta, 0.01, eight_bit=True)
    walk(theta, optimizer, range(5))
    walk(reference, torch.optim.Adam(list(reference.values()), 0.01), range(5))
    for name, tensor in theta.items():
        assert (tensor - reference[name]).abs().max() < 0.01
        moments = [t for t in optimizer.state[tensor].values() if isinstance(t, Tensor) and t.numel() == 8192]
        assert sum(t.nbytes for t in moments) == 2 * 8192


def test_without_bitsandbytes_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(RecipeError, match="set train.memory.optimizer to adam"):
        outer_optimizer(leaves(), 0.01, eight_bit=True)


def test_moments_elsewhere_are_not_the_devices() -> None:
    theta = leaves(1000)
    optimizer = AdamElsewhere(list(theta.values()), 0.01, CPU)
    with LiveBytes(theta.values()) as live:
        for tensor in theta.values():
            tensor.grad = torch.zeros_like(tensor)
        before = live.live
        optimizer.step()
    assert live.live == before == live.peak and live.host_peak >= 2 * 2 * 4000
