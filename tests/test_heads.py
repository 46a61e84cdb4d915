"""Heads against the paper's formula in NumPy, and what must not change their answer."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from papsmear.errors import UsageError
from papsmear.mil.heads import HEADS, GatedAttention, build_head
from papsmear.mil.metrics import figures, youden_threshold

WIDTH = 12


def bag_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def by_the_paper(head: GatedAttention, bag: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Ilse et al. 2018, equations 7 and 9, one instance at a time."""
    p = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    h = [np.maximum(p["embed.0.weight"] @ x + p["embed.0.bias"], 0) for x in bag]
    e = []
    for h_k in h:
        content = np.tanh(p["content.weight"] @ h_k + p["content.bias"])
        gate = 1 / (1 + np.exp(-(p["gate.weight"] @ h_k + p["gate.bias"])))
        e.append(float(np.exp(p["weigh.weight"][0] @ (content * gate))))
    a = np.array(e) / sum(e)
    z = np.sum([a_k * h_k for a_k, h_k in zip(a, h, strict=True)], axis=0)
    return float(p["classify.weight"][0] @ z + p["classify.bias"][0]), a


@pytest.mark.parametrize("n", [1, 2, 37])
def test_gated_attention_is_the_formula_of_the_paper(n: int) -> None:
    torch.manual_seed(0)
    head = GatedAttention(WIDTH, embedding=7, hidden=5).eval()
    with torch.inference_mode():
        logit, attention = head(bag_of(n))
    wanted, weights = by_the_paper(head, bag_of(n).double().numpy())
    assert logit.shape == ()
    assert float(logit) == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(attention.numpy(), weights, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
@given(seed=st.integers(0, 1000), n=st.integers(1, 40))
def test_the_order_of_the_tiles_does_not_matter(name: str, seed: int, n: int) -> None:
    head = build_head(name, WIDTH, {}).eval()
    bag, order = bag_of(n, seed), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    logit, score = head(bag)
    other_logit, other_score = head(bag[order])
    torch.testing.assert_close(logit, other_logit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score[order], other_score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n", [1, 50_000])
def test_small_and_large_bags_have_finite_answers(name: str, n: int) -> None:
    head = build_head(name, WIDTH, {}).eval()
    with torch.inference_mode():
        logit, score = head(100 * bag_of(n).half())
    assert logit.shape == ()
    assert score.shape == (n,)
    assert bool(torch.isfinite(logit))
    assert bool(torch.isfinite(score).all())


@pytest.mark.parametrize("name", HEADS)
def test_a_bag_without_tiles_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="without tiles"):
        build_head(name, WIDTH, {})(bag_of(0))


def test_the_standardisation_travels_with_the_weights_and_does_what_it_says() -> None:
    head = build_head("mean", WIDTH, {})
    head.mean += 3
    head.std *= 2
    other = build_head("mean", WIDTH, {})
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(bag_of(5))[0], head.head((bag_of(5) - 3) / 2)[0])


@pytest.mark.parametrize(
    ("name", "settings", "said"), [("maximum", {}, "gated_attention"), ("mean", {"hidden": 3}, "hidden")]
)
def test_unknown_heads_and_settings_are_named(name: str, settings: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_head(name, WIDTH, settings)


@given(
    labels=st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda found: len(set(found)) == 2),
    seed=st.integers(0, 1000),
)
@example(labels=[c == "1" for c in "010011000110000"], seed=322)  # equals that rounding told apart
def test_the_threshold_is_the_best_of_the_roc_curve(labels: list[bool], seed: int) -> None:
    y = np.array(labels, np.int64)
    p = np.random.default_rng(seed).integers(0, 10, len(y)) / 9
    found = figures(y, p, youden_threshold(y, p))
    false_rate, true_rate, _ = roc_curve(y, p, drop_intermediate=False)
    best = np.max(true_rate - false_rate)
    assert found.sensitivity + found.specificity - 1 == pytest.approx(best)
    equals = np.isclose(true_rate - false_rate, best)
    assert found.sensitivity == pytest.approx(np.max(true_rate[equals]))


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    assert youden_threshold(y, p) == pytest.approx(0.4)
    found = figures(y, p, 0.7)
    assert (found.true_positives, found.false_negatives, found.true_negatives, found.false_positives) == (1, 1, 2, 0)
    assert (found.auc, found.sensitivity, found.specificity) == (1, 0.5, 1)
