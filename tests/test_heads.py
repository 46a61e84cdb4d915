"""What holds of every head: order, padding, bags of one and of many tiles, and that it learns; and the threshold."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from torch import nn

from papsmear.errors import UsageError
from papsmear.mil.head import Standardised
from papsmear.mil.heads import HEADS, build_head
from papsmear.mil.metrics import figures
from papsmear.mil.operating import choose_threshold

WIDTH = 12
# So small that a head of many weights is quick; the others are tested as they are shipped.
SMALL = {
    "transmil": {"embedding": 32, "heads": 4, "landmarks": 41},
    "transmil_unordered": {"embedding": 32, "heads": 4, "landmarks": 41},
    "recurrent": {"hidden": 32},
    "recurrent_ensemble": {"hidden": 32},
}


def bag_of(n: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def small_head(name: str, seed: int = 0) -> Standardised:
    torch.manual_seed(seed)
    settings: dict[str, Any] = SMALL.get(name, {})
    return build_head(name, WIDTH, settings)


def cross_entropy_for(label: int) -> Any:
    return lambda logit: nn.functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label))


@pytest.mark.parametrize("name", [name for name in HEADS if name != "transmil"])  # tests/test_transmil.py: it must
@given(seed=st.integers(0, 1000), n=st.integers(1, 40))
def test_the_order_of_the_tiles_does_not_matter(name: str, seed: int, n: int) -> None:
    head = small_head(name).eval()
    bag, order = bag_of(n, seed), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    logit, score = head(bag)
    other_logit, other_score = head(bag[order])
    torch.testing.assert_close(logit, other_logit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score[order], other_score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("padding", [torch.nan, 1e4])
def test_padding_changes_nothing(name: str, padding: float) -> None:
    head = small_head(name).eval()
    mask = torch.tensor([True, False, False, True, True, True, False, True, True, False])
    bag = torch.full((len(mask), WIDTH), padding)
    bag[mask] = bag_of(6)
    logit, score = head(bag, mask)
    wanted_logit, wanted_score = head(bag_of(6))
    torch.testing.assert_close(logit, wanted_logit, atol=0, rtol=0)
    torch.testing.assert_close(score[mask], wanted_score, atol=0, rtol=0)
    assert bool((score[~mask] == -torch.inf).all())
    loss = head.loss(bag, 1, cross_entropy_for(1), mask)
    torch.testing.assert_close(loss, head.loss(bag_of(6), 1, cross_entropy_for(1)), atol=0, rtol=0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("n", "width"), [(1, WIDTH), (50_000, 384)])
def test_small_and_large_bags_have_finite_answers(name: str, n: int, width: int) -> None:
    head = build_head(name, width, {}).eval()
    with torch.inference_mode():
        logit, score = head((100 * bag_of(n, width=width)).half())
    assert logit.shape == ()
    assert score.shape == (n,)
    assert bool(torch.isfinite(logit))
    assert bool(torch.isfinite(score).all())


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("name", HEADS)
def test_a_bag_of_one_tile_can_be_learnt_from(name: str, label: int) -> None:
    head = small_head(name)
    head.loss(bag_of(1), label, cross_entropy_for(label)).backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("name", HEADS)
def test_one_key_tile_is_learnt(name: str) -> None:
    """One tile of each positive slide is shifted, among up to ten of noise; within 60 epochs no slide is mistaken."""
    labels = [i % 2 for i in range(20)]
    bags = [bag_of(3 + i % 8, i) for i in range(20)]
    for i, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        bag[i % len(bag), 3] += 8 * label
    # From some starts the maximum never looks at the key tile, and then never learns of it; not from this one.
    head = small_head(name, seed=1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(60):
        head.train()
        for first in range(0, 20, 4):
            some = range(first, first + 4)
            losses = [head.loss(bags[i], labels[i], cross_entropy_for(labels[i])) for i in some]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
        head.eval()
        with torch.inference_mode():
            found = [int(head(bag)[0] > 0) for bag in bags]
        if found == labels:
            break
    assert found == labels


@pytest.mark.parametrize("name", HEADS)
def test_a_bag_without_tiles_is_refused(name: str) -> None:
    head = small_head(name)
    with pytest.raises(ValueError, match="without tiles"):
        head(bag_of(0))
    with pytest.raises(ValueError, match="without tiles"):
        head(bag_of(3), torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mean", "classify"),
        ("gated_attention", "embed.0 content gate weigh classify"),
    ],
)
def test_heads_that_were_saved_before_can_still_be_loaded(name: str, keys: str) -> None:
    wanted = {f"head.{key}.{part}" for key in keys.split() for part in ("weight", "bias")} | {"mean", "std"}
    assert build_head(name, WIDTH, {}).state_dict().keys() == wanted


def test_the_standardisation_travels_with_the_weights_and_does_what_it_says() -> None:
    head = build_head("mean", WIDTH, {})
    head.mean += 3
    head.std *= 2
    other = build_head("mean", WIDTH, {})
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(bag_of(5))[0], head.head((bag_of(5) - 3) / 2)[0])


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("maximum", {}, "gated_attention"),
        ("mean", {"hidden": 3}, "hidden"),
        ("transmil", {"embedding": 100}, "embedding 100 is not a multiple of heads 8"),
        ("recurrent", {"tops": [10, 0]}, r"tops \[10, 0\]"),
    ],
)
def test_unknown_heads_and_settings_are_named(name: str, settings: dict[str, Any], said: str) -> None:
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
    found = figures(y, p, choose_threshold(y, p))
    false_rate, true_rate, _ = roc_curve(y, p, drop_intermediate=False)
    best = np.max(true_rate - false_rate)
    assert found.sensitivity + found.specificity - 1 == pytest.approx(best)
    equals = np.isclose(true_rate - false_rate, best)
    assert found.sensitivity == pytest.approx(np.max(true_rate[equals]))


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    assert choose_threshold(y, p) == pytest.approx(0.4)
    found = figures(y, p, 0.7)
    assert (found.true_positives, found.false_negatives, found.true_negatives, found.false_positives) == (1, 1, 2, 0)
    assert (found.auc, found.sensitivity, found.specificity) == (1, 0.5, 1)
