"""CLAM against the equations of its paper in NumPy: both branches, the clustering of tiles, and its loss."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from papsmear.mil.clam import ClamMB, ClamSB, smooth_svm

WIDTH = 12
Array = NDArray[np.float64]


def bag_of(n: int) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))


def a_head(kind: type[ClamSB], sample: int = 3) -> ClamSB:
    torch.manual_seed(0)
    return kind(WIDTH, embedding=7, hidden=5, sample=sample).eval()


def by_the_paper(head: ClamSB, bag: torch.Tensor) -> tuple[Array, Array, Array]:
    """Embeddings h (N, E), attention of each branch (M, N), score of each branch's class (M,), tile by tile."""
    p = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    h, weight = [], []
    for x in bag.double().numpy():
        h_k = np.maximum(p["embed.0.weight"] @ x + p["embed.0.bias"], 0)
        v = np.tanh(p["content.0.weight"] @ h_k + p["content.0.bias"])
        u = 1 / (1 + np.exp(-(p["gate.0.weight"] @ h_k + p["gate.0.bias"])))
        h.append(h_k)
        weight.append([np.exp(w @ (v * u)) for w in p["weigh.weight"]])
    a = np.array(weight).T / np.sum(weight, axis=0)[:, None]
    pooled = [sum(a_mk * h_k for a_mk, h_k in zip(a_m, h, strict=True)) for a_m in a]
    s = [w @ z + b for w, z, b in zip(p["classify.weight"], pooled, p["classify.bias"], strict=True)]
    return np.array(h), a, np.array(s)


@pytest.mark.parametrize("kind", [ClamSB, ClamMB])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_the_logit_and_the_attention_are_those_of_the_paper(kind: type[ClamSB], n: int) -> None:
    head = a_head(kind)
    with torch.inference_mode():
        logit, score = head(bag_of(n))
    _, a, s = by_the_paper(head, bag_of(n))
    np.testing.assert_allclose(score.numpy(), a[-1], atol=1e-6)
    if kind is ClamSB:
        assert float(logit) == pytest.approx(s[0], abs=1e-6)
    else:  # the softmax over both classes is the sigmoid of one logit
        softmax = np.exp(s) / np.exp(s).sum()
        assert float(logit.sigmoid()) == pytest.approx(softmax[1], abs=1e-6)


@pytest.mark.parametrize("kind", [ClamSB, ClamMB])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(("n", "k"), [(40, 3), (5, 2), (1, 0)])
def test_the_loss_is_that_of_the_slide_and_of_the_clustered_tiles(
    kind: type[ClamSB], label: int, n: int, k: int
) -> None:
    head = a_head(kind)
    with torch.inference_mode():
        found = float(head.loss(bag_of(n), label, lambda logit: 10 * logit))
        slide = float(10 * head(bag_of(n))[0])
    h, a, _ = by_the_paper(head, bag_of(n))
    order = np.argsort(-a[label if kind is ClamMB else 0])
    cluster = {name: value.double().numpy() for name, value in head.cluster[label].state_dict().items()}
    losses = []
    for rank, tile in enumerate([*order[:k], *order[n - k :]]):
        s = cluster["weight"] @ h[tile] + cluster["bias"]
        y = int(rank < k)
        losses.append(np.log(sum(np.exp(float(j != y) + s[j] - s[y]) for j in (0, 1))))
    clustering = np.mean(losses) if k else 0
    assert found == pytest.approx(0.7 * slide + 0.3 * clustering, abs=1e-5)


def test_the_smooth_loss_lies_close_above_the_hinge() -> None:
    """Its limit for temperature 0 is the hinge of the top-1 SVM; at 1 it lies above by at most log of the classes."""
    scores = 20 * torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()
    for s in scores:
        smooth = float(smooth_svm(s[None], torch.tensor([1])))
        hinge = max(0.0, 1 + float(s[0] - s[1]))
        assert hinge - 1e-12 <= smooth <= hinge + np.log(2) + 1e-12


def test_clustering_changes_what_is_learnt() -> None:
    head = a_head(ClamSB)
    head.loss(bag_of(20), 1, lambda logit: 0 * logit).backward()
    own, other = head.cluster[1].weight.grad, head.cluster[0].weight.grad
    embedding = head.embed[0].weight.grad
    assert own is not None
    assert bool(own.any())
    assert other is None  # the class that the slide is not of learns nothing
    assert embedding is not None
    assert bool(embedding.any())
