"""The recurrent head against a loop over its tiles in NumPy, and what its ensemble averages."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from papsmear.mil.recurrent import Recurrent, RecurrentEnsemble

WIDTH = 12


def bag_of(n: int) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def a_head(*tops: int) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(WIDTH, tops, hidden=7).double().eval()


def by_a_loop(head: Recurrent, bag: NDArray[np.float64]) -> tuple[list[float], NDArray[np.float64]]:
    """The logit of each network, and the tiles' logits."""
    p = {name: value.numpy() for name, value in head.state_dict().items()}
    score = bag @ p["classify_tile.weight"][0] + p["classify_tile.bias"]
    logits = []
    for i, top in enumerate(head.tops):
        w_in, w_state = p[f"networks.{i}.weight_ih_l0"], p[f"networks.{i}.weight_hh_l0"]
        bias = p[f"networks.{i}.bias_ih_l0"] + p[f"networks.{i}.bias_hh_l0"]
        state = np.zeros(7)
        for tile in np.argsort(-score)[:top]:  # from the highest score down
            state = np.maximum(w_in @ bag[tile] + w_state @ state + bias, 0)
        logits.append(float(p[f"classify.{i}.weight"][0] @ state + p[f"classify.{i}.bias"][0]))
    return logits, score


@pytest.mark.parametrize("n", [1, 4, 37])
@pytest.mark.parametrize("tops", [(10,), (2, 2, 5)])
def test_the_top_tiles_are_read_in_order_and_probabilities_averaged(n: int, tops: tuple[int, ...]) -> None:
    head, bag = a_head(*tops), bag_of(n)
    with torch.inference_mode():
        logit, score = head(bag)
        loss = head.loss(bag, 1, lambda logit: logit**2)
    logits, wanted = by_a_loop(head, bag.numpy())
    np.testing.assert_allclose(score.numpy(), wanted, atol=1e-12)
    assert float(logit.sigmoid()) == pytest.approx(np.mean([1 / (1 + np.exp(-found)) for found in logits]), abs=1e-12)
    assert float(loss) == pytest.approx((wanted.max() ** 2 + np.mean(np.square(logits))) / 2, abs=1e-12)


def test_tiles_below_the_top_have_no_say() -> None:
    head, bag = a_head(3), bag_of(20)
    with torch.inference_mode():
        logit, score = head(bag)
        order = score.argsort(descending=True)
        assert float(head(bag[order[:3]])[0]) == pytest.approx(float(logit), abs=1e-12)
        assert float(head(bag[order[1:]])[0]) != pytest.approx(float(logit), abs=1e-3)


def test_the_ensemble_is_of_six_with_512_units() -> None:
    head = RecurrentEnsemble(WIDTH)
    assert head.tops == (10, 10, 20, 20, 30, 30)
    assert [network.hidden_size for network in head.networks] == [512] * 6
    assert Recurrent(WIDTH).tops == (10,)
    first, second = (network.weight_ih_l0 for network in list(head.networks)[:2])
    assert not torch.equal(first, second)


def test_the_order_is_rearranged_in_training_only() -> None:
    head, bag = a_head(10), bag_of(20)
    steady = {float(head(bag)[0].detach()) for _ in range(4)}
    head.train()
    shaken = {round(float(head(bag)[0].detach()), 9) for _ in range(16)}
    assert len(steady) == 1
    assert len(shaken) > 4
    assert round(steady.pop(), 9) in shaken  # half of the time the order stays


def test_an_extreme_ensemble_stays_finite() -> None:
    head = a_head(2, 3)
    logit, _ = head(1e4 * bag_of(5))
    assert bool(torch.isfinite(logit))
