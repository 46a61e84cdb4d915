"""The faiss k-NN against a brute-force loop and against scikit-learn."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from papsmear.probes.knn import EXP, PLAIN, Neighbourhoods, exp_votes, neighbours, normalised, predict_knn, votes


def features(n: int, seed: int, width: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def test_rows_have_length_one_and_a_row_of_zeros_stays() -> None:
    x = features(5, 0)
    x[2] = 0
    lengths = np.linalg.norm(normalised(x), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 0, 1, 1], rtol=1e-6)


@given(n_train=st.integers(2, 60), n_query=st.integers(1, 20), seed=st.integers(0, 999), data=st.data())
def test_neighbours_are_those_of_a_brute_force_loop(n_train: int, n_query: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n_train))
    train, queries = features(n_train, seed), 10 * features(n_query, seed + 1)
    found, similarities = neighbours(train, queries, k)
    for row, told, query in zip(found, similarities, queries.astype(float), strict=True):
        cosine = [float(query @ t / np.linalg.norm(query) / np.linalg.norm(t)) for t in train.astype(float)]
        expected = sorted(cosine, reverse=True)[:k]
        np.testing.assert_allclose([cosine[i] for i in row], expected, atol=1e-6)
        np.testing.assert_allclose(told, expected, atol=1e-6)
        assert len(set(row)) == k


@given(
    labels=st.integers(1, 9).flatmap(
        lambda k: st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), min_size=1, max_size=8)
    )
)
def test_votes_are_a_count_where_the_nearest_of_the_most_frequent_wins(labels: list[list[int]]) -> None:
    expected = []
    for row in labels:
        counts = Counter(row)
        most = max(counts.values())
        expected.append(next(label for label in row if counts[label] == most))
    assert votes(np.array(labels), 5).tolist() == expected


@pytest.mark.parametrize("k", [1, 5, 20])
def test_predictions_are_scikit_learns_wherever_no_two_classes_tie(k: int) -> None:
    train, queries = features(200, 1), features(80, 2)
    labels = np.random.default_rng(3).integers(0, 4, 200)
    theirs = KNeighborsClassifier(k).fit(normalised(train), labels)
    shares = np.sort(theirs.predict_proba(normalised(queries)), axis=1)
    clear = shares[:, -1] > shares[:, -2]
    ours = votes(labels[neighbours(train, queries, k)[0]], 4)
    assert clear.sum() > 40
    np.testing.assert_array_equal(ours[clear], theirs.predict(normalised(queries))[clear])


def test_the_length_of_a_feature_does_not_matter() -> None:
    train, queries = features(50, 4), features(9, 5)
    stretch = np.linspace(0.01, 100, 50, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(neighbours(train * stretch, queries, 7)[0], neighbours(train, queries, 7)[0])


@given(k=st.integers(1, 12), n_classes=st.integers(2, 5), seed=st.integers(0, 999))
def test_weighted_votes_are_those_of_a_brute_force_loop(k: int, n_classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, similarities = generator.integers(0, n_classes, (6, k)), generator.uniform(-1, 1, (6, k)).astype(np.float32)
    expected = []
    for row, alike in zip(labels, similarities, strict=True):
        sums = [0.0] * n_classes
        for label, similarity in zip(row, alike, strict=True):
            sums[label] += math.exp(float(similarity) / 0.07)
        expected.append(sums.index(max(sums)))
    assert exp_votes(labels, similarities, n_classes).tolist() == expected


def test_one_near_neighbour_outweighs_two_farther_ones() -> None:
    """At 0.9 against 0.8 a vote weighs exp(0.1 / 0.07) = 4.2 times as much."""
    labels, similarities = np.array([[0, 1, 1], [0, 1, 1]]), np.array([[0.9, 0.8, 0.8], [0.9, 0.88, 0.88]], np.float32)
    assert votes(labels, 2).tolist() == [1, 1]
    assert exp_votes(labels, similarities, 2).tolist() == [0, 1]


def test_one_search_serves_every_k_and_both_kinds_of_votes() -> None:
    train, queries = features(60, 7), features(20, 8)
    labels = np.random.default_rng(9).integers(0, 3, 60)
    found = predict_knn(train, labels, queries, [1, 5, 20], 3)
    for k in (1, 5, 20):
        near, similarities = neighbours(train, queries, k)
        np.testing.assert_array_equal(found[PLAIN][k], votes(labels[near], 3))
        np.testing.assert_array_equal(found[EXP][k], exp_votes(labels[near], similarities, 3))


def test_neighbours_found_once_for_all_parts_are_those_of_a_search_in_each() -> None:
    """Some parts hold most cells; one leaves out whole clusters, so that all near cells of its queries are outside."""
    generator = np.random.default_rng(5)
    cluster = np.arange(300) // 50
    x = (3 * generator.normal(size=(6, 20))[cluster] + generator.normal(size=(300, 20))).astype(np.float32)
    cells = Neighbourhoods.of(x, 5)
    assert cells.near.shape == (300, 20)
    for part in (np.flatnonzero(cluster != 2), generator.permutation(300)[:240], np.arange(0, 300, 50), np.arange(5)):
        queries = np.setdiff1d(np.arange(300), part)
        found, similarities = cells.among(part, queries, 5)
        expected, alike = neighbours(x[part], x[queries], 5)
        np.testing.assert_array_equal(found, part[expected])
        np.testing.assert_allclose(similarities, alike, atol=1e-5)
