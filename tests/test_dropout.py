"""Dropout by bytes: how many it drops, what it does to the others, and that it follows the seed."""

import pytest
import torch

from papsmear.mil.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_are_dropped_as_is_asked_and_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 333, dtype=dtype)  # not a multiple of eight
    y = Dropout(p)(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    dropped = round(256 * p) / 256
    sd = (dropped * (1 - dropped) / y.numel()) ** 0.5
    assert float((y == 0).double().mean()) == pytest.approx(dropped, abs=5 * sd)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - dropped)))


def test_each_place_in_a_draw_is_dropped_as_often_and_none_follows_its_neighbour() -> None:
    torch.manual_seed(0)
    zero = (Dropout(0.25)(torch.ones(100_000, 8)) == 0).double()  # (100,000, 8): a draw a row
    sd = (0.25 * 0.75 / len(zero)) ** 0.5
    assert float((zero.mean(dim=0) - 0.25).abs().max()) < 5 * sd
    correlation = torch.corrcoef(zero.T) - torch.eye(8, dtype=torch.double)
    assert float(correlation.abs().max()) < 5 / len(zero) ** 0.5


def test_the_gradient_passes_where_the_values_do() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 7, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_the_seed_decides() -> None:
    x, first, dropout = torch.ones(100), [], Dropout(0.5)
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        first.append(dropout(x))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(dropout(x), dropout(x))


def test_nothing_or_all_is_dropped_where_that_is_asked() -> None:
    x = torch.ones(9, 3)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), 0 * x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)
