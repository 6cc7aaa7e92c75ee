"""The check before a run, and frozen layers of foreign make."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import noise_batch, noise_loss, tiny_unet
from diffusers.models.attention_processor import AttnProcessor
from oracles import relative_error
from pair_cases import Params, draw
from torch import Tensor, nn

from adapter_mu.errors import ModelError
from adapter_mu.meta import check_product, frozen_linear, pair_block, product
from adapter_mu.models.quantized import dequantized, is_quantized


class Faulty(nn.Module):
    """Layer norm as PyTorch derives it: a stand-in for a layer whose derivative nobody has checked."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        self.fault, self.weight = fault, nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.native_layer_norm(x, (8,), self.weight, None, 1e-5)[0] if self.fault else F.layer_norm(x, (8,))
        return y * self.weight


@pytest.mark.parametrize("fault", [True, False])
def test_self_check_names_the_type_of_layer_at_fault(fault: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), Faulty(fault)), nn.SiLU(), nn.Linear(8, 8)).requires_grad_(
        False
    )
    x = draw(3, 8).float()
    params = dict(model[0][0].named_parameters())
    loss = lambda p: torch.func.functional_call(model, {f"0.0.{n}": t for n, t in p.items()}, (x,)).square().sum()  # noqa: E731
    if not fault:
        return check_product(model, lambda: model(x), loss, params)
    with pytest.raises(ModelError, match=r"at fault: Faulty: relative error"):
        check_product(model, lambda: model(x), loss, params)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_self_check_passes_a_unet(kind: str) -> None:
    unet = tiny_unet(kind).float()
    batch = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.float() if t.is_floating_point() else t, noise_batch(tiny_unet(kind), 1)
    )
    unet.set_attn_processor(AttnProcessor())
    unet.enable_gradient_checkpointing(pair_block)
    params = {n: p.detach() for n, p in unet.named_parameters() if "to_k" in n}
    check_product(unet, lambda: unet(**batch["inputs"]).sample, lambda p: noise_loss(unet, p, batch), params)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_frozen_quantised_layers(kind: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = nn.Linear(64, 64)
    if kind == "nf4":
        quantised = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
        quantised.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
    else:
        quantised = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        quantised.load_state_dict(plain.state_dict())
    quantised = quantised.to("cpu").requires_grad_(False)
    assert is_quantized(quantised)
    quantised(torch.ones(1, 64))
    matrix = dequantized(quantised).float()
    assert relative_error({"w": matrix}, {"w": plain.weight.float()}) < 0.15
    frozen_linear(quantised, dequantized)
    first, x = nn.Linear(64, 64), torch.randn(5, 64)
    model = nn.Sequential(first, nn.SiLU(), copy.deepcopy(quantised), nn.Tanh())
    dense = nn.Sequential(first, nn.SiLU(), nn.Linear(64, 64), nn.Tanh())
    dense[2].weight.data, dense[2].bias.data = matrix, quantised.bias.detach()

    def loss(net: nn.Module) -> Callable[[Params], Tensor]:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self) -> Tensor:
                return pair_block(self.net, x).square().sum()

        return lambda p: torch.func.functional_call(Whole(), {f"net.0.{n}": t for n, t in p.items()}, ())

    params = {n: p.detach() for n, p in first.named_parameters()}
    vector = {n: torch.randn_like(p) for n, p in params.items()}
    found, _ = product("auto", loss(model), params, vector)
    expected, _ = product("auto", loss(dense), params, vector)
    assert relative_error(found, expected) < (1e-5 if kind == "nf4" else 0.05)
