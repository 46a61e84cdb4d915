"""Gated attention in blocks of tiles against the formula, with gradients by autograd and by finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from papsmear.mil import gated as module
from papsmear.mil.gated import gated

N, E, H = 11, 6, 3


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)


def layers(dtype: torch.dtype = torch.float64) -> list[nn.Linear]:
    """V, U and w of the paper, with biases."""
    torch.manual_seed(0)
    return [nn.Linear(E, H, dtype=dtype), nn.Linear(E, H, dtype=dtype), nn.Linear(H, 1, dtype=dtype)]


def by_the_paper(h: Tensor, content: nn.Linear, gate: nn.Linear, weigh: nn.Linear) -> Tensor:
    """Ilse et al. 2018, equation 9 before the softmax."""
    weight: Tensor = weigh(torch.tanh(content(h)) * torch.sigmoid(gate(h)))
    return weight


def values_and_gradients(
    way: Callable[..., Tensor], h: Tensor, dtype: torch.dtype, wanted: bool = True
) -> tuple[Tensor, ...]:
    """The attention (N, 1), and the gradients of the layers and, where wanted, of h."""
    parts = layers(dtype)
    h = h.clone().requires_grad_(wanted)
    score = way(h, *parts)
    of = [p for part in parts for p in part.parameters()] + [h] * wanted
    return score, *torch.autograd.grad((score * torch.arange(len(h)).to(score)[:, None]).sum(), of)


@pytest.mark.parametrize("n", [1, 4, N])
@pytest.mark.parametrize("wanted", [True, False], ids=["with h", "without h"])
def test_values_and_gradients_are_those_of_the_formula(n: int, wanted: bool) -> None:
    h = 2 * torch.randn(n, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = values_and_gradients(gated, h, torch.float64, wanted)
    torch.testing.assert_close(found, values_and_gradients(by_the_paper, h, torch.float64, wanted))


def test_gradients_are_those_of_finite_differences() -> None:
    content, gate, weigh = layers()
    h = torch.randn(N, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    given = (h, content.weight, content.bias, gate.weight, gate.bias, weigh.weight[0])
    assert torch.autograd.gradcheck(module._Gated.apply, given)


def test_in_bfloat16_they_are_near_those_of_float32() -> None:
    h = torch.randn(500, E, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = values_and_gradients(gated, h, torch.float32)
    wanted = values_and_gradients(by_the_paper, h.float(), torch.float32)
    assert found[0].dtype == torch.float32
    assert not torch.equal(found[0], wanted[0])  # or nothing was rounded
    for ours, exact in zip(found, wanted, strict=True):
        assert float((ours.float() - exact).detach().norm() / exact.detach().norm()) < 0.01
