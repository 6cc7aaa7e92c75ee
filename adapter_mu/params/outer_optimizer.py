"""Adam on theta: its moments in 32 or 8 bits, where theta lies or elsewhere, and how they are saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from adapter_mu.errors import RecipeError
from adapter_mu.live import counts_as_host, landing

PREFIX = "adam."


def outer_optimizer(
    theta: Mapping[str, Tensor], lr: float, *, eight_bit: bool = False, moments_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba, Algorithm 1) on the leaves `theta`, with PyTorch's defaults.

    Args:
        theta: leaf tensors.
        lr: the paper's omega.
        eight_bit: moments in 8 bits, by bitsandbytes (Dettmers et al. 2022), which steps where theta lies.
        moments_on: where the moments lie and Adam steps, tensor by tensor; None: where theta lies.

    Raises:
        RecipeError: bitsandbytes is asked for and not installed.
    """
    leaves = list(theta.values())
    if eight_bit:
        try:
            from bitsandbytes.optim import Adam8bit
        except ImportError as error:
            raise RecipeError(
                "optimizer adam8bit needs bitsandbytes, which is not installed: pip install 'adapter-mu[gpu]',"
                " or set train.memory.optimizer to adam."
            ) from error
        return Adam8bit(leaves, lr)  # type: ignore[no-any-return]
    return torch.optim.Adam(leaves, lr) if moments_on is None else AdamElsewhere(leaves, lr, moments_on)


class AdamElsewhere(torch.optim.Optimizer):
    """Adam whose moments lie on another device: each tensor and its gradient go there, and the tensor comes back."""

    def __init__(self, leaves: list[Tensor], lr: float, device: torch.device) -> None:
        super().__init__(leaves, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})
        self.device = device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not used."""
        for group in self.param_groups:
            for leaf in group["params"]:
                if leaf.grad is not None:
                    self._update(leaf, group)

    def _update(self, leaf: Tensor, settings: dict[str, Any]) -> None:
        there = "device" if counts_as_host(leaf) else "host"
        back = "host" if there == "device" else "device"
        with landing(there):  # type: ignore[arg-type]
            assert leaf.grad is not None
            device = leaf.device if leaf.is_meta else self.device  # a rehearsal has one device only
            moved, gradient = (t.to(device, copy=True) for t in (leaf.detach(), leaf.grad))
            state = self.state[leaf] or {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(moved),
                "exp_avg_sq": torch.zeros_like(moved),
            }
            self.state[leaf] = state
            adam(
                *([moved], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]]),
                foreach=False,
                amsgrad=False,
                beta1=settings["betas"][0],
                beta2=settings["betas"][1],
                lr=settings["lr"],
                weight_decay=0.0,
                eps=settings["eps"],
                maximize=False,
            )
        with landing(back):  # type: ignore[arg-type]
            leaf.copy_(moved)


def optimizer_state(optimizer: torch.optim.Optimizer, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the optimizer remembers, as tensors that share no memory."""
    return {
        f"{PREFIX}{key}.{name}": torch.as_tensor(value).clone()
        for name, tensor in theta.items()
        for key, value in optimizer.state[tensor].items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, theta: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """Take up where `optimizer_state` was given; other entries of `saved` are passed over."""
    home = optimizer.device if isinstance(optimizer, AdamElsewhere) else None
    whole = not isinstance(optimizer, torch.optim.Adam | AdamElsewhere)  # bitsandbytes counts its steps in an integer
    found: dict[str, dict[str, Tensor]] = {name: {} for name in theta}
    for key, value in saved.items():
        if key.startswith(PREFIX):
            what, _, name = key.removeprefix(PREFIX).partition(".")
            found[name][what] = value
    for name, tensor in theta.items():
        own = found[name]
        state: dict[str, Any] = {key: value.to(home or tensor.device) for key, value in own.items() if key != "step"}
        optimizer.state[tensor] = state | {"step": int(own["step"]) if whole else own["step"]}
