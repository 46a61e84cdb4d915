"""DSMIL against the equations of its paper in NumPy, one instance at a time."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from papsmear.mil.dsmil import DSMIL

WIDTH = 12


def bag_of(n: int) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))


def a_head() -> DSMIL:
    torch.manual_seed(0)
    return DSMIL(WIDTH, query=5).double()


def by_the_paper(head: DSMIL, bag: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """Scores of the two streams, and U(h_i, h_m), of Li et al. 2021, section 3.2."""
    p = {name: value.detach().numpy() for name, value in head.state_dict().items()}

    def linear(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(p[f"{name}.weight"] @ x + p[f"{name}.bias"])

    c = [float(linear("classify_tile", h)[0]) for h in bag]
    m = int(np.argmax(c))
    q, v = [linear("query", h) for h in bag], [linear("value", h) for h in bag]
    u = np.exp([q_i @ q[m] / np.sqrt(5) for q_i in q])
    u /= u.sum()
    b = sum(u_i * v_i for u_i, v_i in zip(u, v, strict=True))
    return c[m], float(linear("classify", np.asarray(b))[0]), u


@pytest.mark.parametrize("n", [1, 2, 37])
def test_both_streams_are_those_of_the_paper(n: int) -> None:
    head, bag = a_head(), bag_of(n).double()
    with torch.inference_mode():
        logit, attention = head(bag)
        loss = head.loss(bag, 1, lambda logit: logit**2)
    highest, pooled, u = by_the_paper(head, bag.numpy())
    assert float(logit) == pytest.approx((highest + pooled) / 2, abs=1e-12)
    np.testing.assert_allclose(attention.numpy(), u, atol=1e-12)
    assert float(loss) == pytest.approx((highest**2 + pooled**2) / 2, abs=1e-12)


def test_both_streams_learn() -> None:
    head = a_head()
    head.loss(bag_of(9).double(), 1, lambda logit: -logit).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
