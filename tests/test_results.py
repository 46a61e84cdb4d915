"""The protocols: what is chosen inside the training part never sees the test part, and figures are those of loops."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from papsmear.probes.choice import choose_k
from papsmear.probes.classes import SIPAKMED
from papsmear.probes.datasets import CellSet
from papsmear.probes.differences import differences
from papsmear.probes.fewshot import drawings, few_shot
from papsmear.probes.knn import EXP, PLAIN, Neighbourhoods, predict_knn
from papsmear.probes.linear import choose_c, coordinates, linear_probe
from papsmear.probes.protocol import knn_probe
from papsmear.probes.prototype import predict_prototype
from papsmear.probes.results import INSIDE, ON_TEST, Protocol, measure, predict
from papsmear.probes.scores import weighted_f1
from papsmear.probes.splits import grouped_splits, inner_folds, random_splits, source_pictures

KS = [1, 3, 5, 9, 15, 25]


@pytest.fixture(scope="module")
def cells() -> CellSet:
    """160 cells of 80 pictures in five classes."""
    labels = np.repeat(np.arange(5), [40, 30, 30, 36, 24])
    names = tuple(f"{i // 2:03}_{i % 2:02}.bmp" for i in range(len(labels)))
    return CellSet("sipakmed", SIPAKMED, names, (), labels, {})


def blurred(labels: NDArray[np.int64], seed: int = 0, spread: float = 1.6, width: int = 8) -> NDArray[np.float32]:
    """Features of classes that overlap."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(5, width))[labels] + spread * generator.normal(size=(len(labels), width))).astype(
        np.float32
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_chosen_inside_the_training_part_does_not_see_the_test_part(cells: CellSet, grouped: bool) -> None:
    """Test labels shuffled, test features replaced: k and C stay; the published k, chosen on the test part, moves."""
    features, labels, pictures = blurred(cells.labels), cells.labels, source_pictures(cells)
    parts = grouped_splits(labels, pictures, 1, 0) if grouped else random_splits(labels, 1, 0)
    test = parts[0][1]
    groups = pictures if grouped else None
    before = predict(Neighbourhoods.of(features, max(KS)), labels, parts, groups, KS, 0)
    moved = set()
    for seed in range(8):
        generator = np.random.default_rng(seed)
        other, noise = labels.copy(), features.copy()
        other[test] = generator.permutation(labels[test])
        noise[test] = generator.normal(size=(len(test), 8))
        after = predict(Neighbourhoods.of(noise, max(KS)), other, parts, groups, KS, 0)
        for probe in (f"k-NN, {PLAIN}", f"k-NN, {EXP}", "linear"):
            assert after[probe, INSIDE].picks == before[probe, INSIDE].picks
        moved.add(after[f"k-NN, {PLAIN}", ON_TEST].picks)
    assert len(moved) > 1


def test_k_is_chosen_by_the_loop_over_the_folds(cells: CellSet) -> None:
    features, labels = blurred(cells.labels, seed=3), cells.labels
    folds = inner_folds(labels, None, 0)
    scores: dict[str, dict[int, float]] = {PLAIN: {}, EXP: {}}
    for kind, k in ((kind, k) for kind in scores for k in KS):
        found = np.full(len(labels), -1)
        for fit, check in folds:
            found[check] = predict_knn(features[fit], labels[fit], features[check], [k], 5)[kind][k]
        scores[kind][k] = f1_score(labels, found, average="weighted")
    near = Neighbourhoods.of(features, max(KS))
    chosen = choose_k(near, labels, folds, KS, 5)
    assert chosen == {kind: max(of_k, key=lambda k: of_k[k]) for kind, of_k in scores.items()}
    assert choose_k(near, labels, folds, [1, 150], 5) == {PLAIN: 1, EXP: 1}, "150 is more than a fold fits on"
    assert choose_k(near, labels, [], [3, 1], 5) == {PLAIN: 1, EXP: 1}


def test_the_published_protocol_is_among_the_results_unchanged(cells: CellSet) -> None:
    features = blurred(cells.labels)
    score, results = knn_probe(features, cells, KS, 4, 0), measure(features, cells, KS, 4, 0)
    (published,) = (protocol for protocol in results if protocol.as_published)
    found = results[published]
    assert (found.weighted_f1, found.class_f1, found.side_f1) == (score.weighted_f1, score.class_f1, score.side_f1)
    assert found.picks == (score.k,) * 4
    for name, (low, high) in found.intervals.items():
        spread = {"weighted F1": found.weighted_f1, **found.class_f1, **found.side_f1}[name]
        assert low < spread.mean < high
    assert {(p.splits, p.probe) for p in results if p.honest} == {
        ("grouped", probe) for probe in (f"k-NN, {PLAIN}", f"k-NN, {EXP}", "linear", "prototype")
    }
    assert len(results) == 12
    again = measure(features, cells, KS, 4, 0)
    assert all(again[p].intervals == r.intervals and again[p].picks == r.picks for p, r in results.items())


def test_without_source_pictures_there_are_no_grouped_results(cells: CellSet) -> None:
    unnamed = CellSet("sipakmed", SIPAKMED, tuple(f"cell{i}" for i in range(160)), (), cells.labels, {})
    assert {p.splits for p in measure(blurred(cells.labels), unnamed, [1, 5], 1, 0)} == {"ungrouped"}


def test_differences_are_paired(cells: CellSet) -> None:
    """An encoder against itself differs by nothing in every resample; two that err alike differ by less than apart."""
    ks = [5]
    good, near = blurred(cells.labels), blurred(cells.labels)
    near[::7] += 0.5
    results = {name: measure(f, cells, ks, 2, 0) for name, f in (("a", good), ("same", good), ("near", near))}
    found = {(d.first, d.second, d.protocol): d for d in differences(results)}
    assert len(found) == 3 * len(results["a"])
    protocol = Protocol("ungrouped", f"k-NN, {PLAIN}", INSIDE)
    same = found["a", "same", protocol]
    assert (same.mean, same.interval, same.clear) == (0, (0, 0), False)
    pair = found["a", "near", protocol]
    a, b = results["a"][protocol], results["near"][protocol]
    assert pair.mean == pytest.approx(a.weighted_f1.mean - b.weighted_f1.mean)
    apart = np.percentile(a.resampled - np.random.default_rng(0).permutation(b.resampled), [2.5, 97.5])
    assert pair.interval[1] - pair.interval[0] < 0.8 * (apart[1] - apart[0])


@pytest.mark.parametrize("width", [8, 300])
def test_the_linear_probe_is_scikit_learns_on_all_columns(cells: CellSet, width: int) -> None:
    """Fewer columns than cells, and more, where the fit is done in the span of the training rows."""
    features = blurred(cells.labels, width=width, spread=6)
    features[:, 1] = 3  # a column that does not vary
    (train, test) = random_splits(cells.labels, 1, 0)[0]
    x, q = coordinates(features[train], features[test])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8))
    expected = model.fit(features[train].astype(float), cells.labels[train]).predict(features[test].astype(float))
    ours = linear_probe(features[train], cells.labels[train], features[test], [], (0.1,))[1]
    assert (ours == expected).mean() > 0.97  # a tie within the solvers' tolerance may fall to either side
    assert x.shape[1] == min(width, len(train))
    np.testing.assert_allclose(q @ x.T, (lambda s: s.transform(features[test]) @ s.transform(features[train]).T)(
        StandardScaler().fit(features[train].astype(float))
    ), atol=1e-2)  # fmt: skip


def test_c_is_chosen_by_the_loop_over_the_folds_and_one_class_needs_no_fit(cells: CellSet) -> None:
    features, labels = blurred(cells.labels).astype(float), cells.labels
    folds = inner_folds(labels, None, 0)
    scores = {}
    for c in (1e-4, 1.0):
        found = np.full(len(labels), -1)
        for fit, check in folds:
            found[check] = (
                LogisticRegression(C=c, max_iter=2000).fit(features[fit], labels[fit]).predict(features[check])
            )
        scores[c] = weighted_f1(labels, found)
    assert scores[1.0] > scores[1e-4]
    assert choose_c(features, labels, folds, (1e-4, 1.0)) == 1.0
    only = np.zeros(5, np.int64)
    assert linear_probe(blurred(cells.labels)[:5], only, blurred(cells.labels)[:3], [])[1].tolist() == [0, 0, 0]


def test_a_prototype_is_the_mean_of_unit_features(cells: CellSet) -> None:
    features, labels = blurred(cells.labels), cells.labels + (cells.labels > 1)  # a class that is nowhere
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    present = sorted(set(labels.tolist()))
    means = [unit[labels == label].mean(axis=0) for label in present]
    expected = [present[int(np.argmax([u @ m / np.linalg.norm(m) for m in means]))] for u in unit]
    assert predict_prototype(features, labels, features).tolist() == expected


def test_few_shot_drawings_are_stratified_and_each_holds_the_smaller_ones() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [100, 40, 12]))
    drawn = drawings(labels, 0)
    counts = {amount: np.bincount(labels[kept]).tolist() for amount, kept in drawn.items()}
    assert counts == {
        "1 %": [1, 1, 0, 1], "2 %": [2, 1, 0, 1], "5 %": [5, 2, 0, 1], "10 %": [10, 4, 0, 1], "25 %": [25, 10, 0, 3],
        "1-shot": [1, 1, 0, 1], "5-shot": [5, 5, 0, 5], "10-shot": [10, 10, 0, 10],
    }  # fmt: skip
    for fewer, more in (("1 %", "2 %"), ("2 %", "5 %"), ("10 %", "25 %"), ("1-shot", "5-shot"), ("5-shot", "10-shot")):
        assert set(drawn[fewer]) <= set(drawn[more])
    assert not np.array_equal(drawn["5-shot"], drawings(labels, 1)["5-shot"])


def test_more_cells_help_and_the_curve_is_on_the_grouped_splits(cells: CellSet) -> None:
    shots = few_shot(blurred(cells.labels, spread=0.8), cells, 4, 0)
    assert {shot.splits for shot in shots} == {"grouped"}
    for probe in ("linear", "prototype"):
        of = {shot.amount: shot for shot in shots if shot.probe == probe}
        assert of["10-shot"].weighted_f1.mean > of["1-shot"].weighted_f1.mean + 0.05
        assert of["5-shot"].cells == 25
        assert len(of["1 %"].weighted_f1.runs) == 4
