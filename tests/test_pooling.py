"""Pooling heads against their formulas in NumPy, one instance at a time."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from papsmear.mil.pooling import Attention, GatedAttention, Max, Mean

WIDTH = 12


def bag_of(n: int) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))


def by_the_paper(head: Attention, bag: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Ilse et al. 2018, equation 7 with the weights of 9 where the head has a gate, else of 8."""
    p = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    h = list(bag)
    if "embed.0.weight" in p:
        h = [np.maximum(p["embed.0.weight"] @ x + p["embed.0.bias"], 0) for x in bag]
    e = []
    for h_k in h:
        content = np.tanh(p["content.weight"] @ h_k + p["content.bias"])
        if "gate.weight" in p:
            content *= 1 / (1 + np.exp(-(p["gate.weight"] @ h_k + p["gate.bias"])))
        e.append(float(np.exp(p["weigh.weight"][0] @ content)))
    a = np.array(e) / sum(e)
    z = np.sum([a_k * h_k for a_k, h_k in zip(a, h, strict=True)], axis=0)
    return float(p["classify.weight"][0] @ z + p["classify.bias"][0]), a


@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("embedding", [7, None])
@pytest.mark.parametrize("kind", [Attention, GatedAttention])
def test_attention_is_the_formula_of_the_paper(kind: type[Attention], embedding: int | None, n: int) -> None:
    torch.manual_seed(0)
    head = kind(WIDTH, embedding=embedding, hidden=5).eval()
    with torch.inference_mode():
        logit, attention = head(bag_of(n))
    wanted, weights = by_the_paper(head, bag_of(n).double().numpy())
    assert ("embed.0.weight" in head.state_dict()) == (embedding is not None)
    assert ("gate.weight" in head.state_dict()) == (kind is GatedAttention)
    assert logit.shape == ()
    assert float(logit) == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(attention.numpy(), weights, atol=1e-6)


@pytest.mark.parametrize(("kind", "pool"), [(Mean, np.mean), (Max, np.max)])
def test_mean_and_max_pool_the_logits_of_the_tiles(kind: type[Mean], pool: np.ufunc) -> None:
    head = kind(WIDTH)
    logit, score = head(bag_of(9))
    weight, bias = head.classify.weight.detach().numpy()[0], float(head.classify.bias.detach())
    wanted = [float(weight @ x) + bias for x in bag_of(9).numpy()]
    np.testing.assert_allclose(score.detach().numpy(), wanted, atol=1e-6)
    assert float(logit.detach()) == pytest.approx(float(pool(wanted)), abs=1e-6)
