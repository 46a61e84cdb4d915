"""Transfer from public cells to in-house ones: metrics against scikit-learn, slides resampled whole, and no leak."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.probes import published
from papsmear.probes.bootstrap import resamples
from papsmear.probes.classes import HERLEV, SIPAKMED, CellClass
from papsmear.probes.datasets import CellSet
from papsmear.probes.transfer import (
    METRICS,
    cells_to_test,
    check_targets,
    fitting_names,
    fitting_set,
    metrics,
    scores,
    transfer,
)
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import export_encoder, load_encoder

CARD = EncoderCard("e", "a", 64, (0.5,) * 3, (0.5,) * 3)
TWO_SIDES = (CellClass("HSIL", "HSIL", "positive"), CellClass("NILM", "NILM", "negative"))


def cell_set(name: str, labels: list[int], classes: tuple[CellClass, ...], **told: Any) -> CellSet:
    return CellSet(name, classes, tuple(f"{i}.png" for i in range(len(labels))), (), np.array(labels), {}, **told)


def features_of_sides(cells: CellSet, noise: float, seed: int = 0) -> np.ndarray:
    """Positive cells round one direction, negative round another, and the rest where the positive ones are."""
    centre = {"positive": (1, 0, 0, 0), "negative": (0, 1, 0, 0), "neither": (1, 0, 0, 0)}
    generator = np.random.default_rng(seed)
    of_cell = np.array([centre[cells.classes[label].side] for label in cells.labels], float)
    return np.asarray(of_cell + noise * generator.normal(size=of_cell.shape), np.float32)


@pytest.fixture
def world() -> tuple[dict[str, CellSet], dict[str, CellSet]]:
    sets = {
        "herlev": cell_set("herlev", [label for label in range(7) for _ in range(8)], HERLEV),
        "sipakmed": cell_set("sipakmed", [label for label in range(5) for _ in range(8)], SIPAKMED),
    }
    slides = tuple(f"s{i // 4}" for i in range(40))
    target = cell_set("cells", [0] * 20 + [1] * 20, TWO_SIDES, slides=slides, folds=tuple(i // 20 for i in range(40)))
    return sets, {"cells": target}


# --- metrics ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_metrics_are_scikit_learns_with_weights(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 25))
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    truth, shares = draw.integers(0, 2, n), draw.integers(0, 4, n) / 3
    predicted, weights = draw.integers(0, 2, n), draw.integers(0, 3, n).astype(float)
    found = {name: value[0] for name, value in metrics(truth, predicted, shares, weights[None]).items()}
    positive, negative = (weights * truth).sum() > 0, (weights * (1 - truth)).sum() > 0
    assert np.isnan(found["sensitivity"]) == (not positive)
    assert np.isnan(found["specificity"]) == (not negative)
    assert np.isnan(found["auc"]) == np.isnan(found["f1"]) == (not (positive and negative))
    if positive:
        assert found["sensitivity"] == pytest.approx(recall_score(truth, predicted, sample_weight=weights))
    if negative:
        recall = recall_score(truth, predicted, pos_label=0, sample_weight=weights)
        assert found["specificity"] == pytest.approx(recall)
    if positive and negative:
        assert found["auc"] == pytest.approx(roc_auc_score(truth, shares, sample_weight=weights))
        assert found["f1"] == pytest.approx(f1_score(truth, predicted, sample_weight=weights, zero_division=0))


def test_intervals_resample_whole_slides() -> None:
    """Of each slide all cells are right or all are wrong, so the slides alone decide: the loop over the resamples."""
    slides = np.repeat(np.arange(8), 5)
    truth, right = slides % 2, slides < 5
    predicted = np.where(right, truth, 1 - truth)
    found = scores(truth, predicted, predicted.astype(float), slides, seed=3)
    slow = []
    for weights in resamples(slides, 3):
        drawn = np.repeat(np.arange(40), weights.astype(int))
        if truth[drawn].any():
            slow.append(float(predicted[drawn][truth[drawn] == 1].mean()))
    assert found["sensitivity"] == (0.5, pytest.approx(tuple(np.percentile(slow, [2.5, 97.5]))))
    low, high = found["sensitivity"][1] or (0, 0)
    by_cell = scores(truth, predicted, predicted.astype(float), None, seed=3)["sensitivity"][1] or (0, 0)
    assert high - low > 1.5 * (by_cell[1] - by_cell[0])
    assert scores(truth, predicted, predicted.astype(float), np.zeros(40, int), 3)["sensitivity"][1] is None


def test_positives_alone_have_a_sensitivity_and_nothing_else() -> None:
    found = scores(np.ones(4, int), np.array([1, 1, 0, 1]), np.array([1, 0.8, 0.4, 1]), None, 0)
    assert list(found) == ["sensitivity"]
    assert found["sensitivity"][0] == 0.75


# --- fitted on H, S, H+S ------------------------------------------------------------------------------------------


def test_what_is_separable_is_told_apart_and_cells_of_neither_side_are_not_asked(
    world: tuple[dict[str, CellSet], dict[str, CellSet]],
) -> None:
    sets, targets = world
    features = {name: features_of_sides(cells, 0.1) for name, cells in (sets | targets).items()}
    found = transfer("e", CARD, features, sets, targets, [1, 3, 5], seed=0)
    assert [row.fit for row in found] == [("herlev",), ("sipakmed",), ("herlev", "sipakmed")]
    for row in found:
        assert {name: value for name, (value, _) in row.scores.items()} == dict.fromkeys(METRICS, 1.0)
        assert (row.n_positive, row.n_negative, row.n_slides, row.fold, row.leak) == (20, 20, 10, None, False)
    features["sipakmed"][sets["sipakmed"].labels == 2] = features["cells"][0]  # metaplastic cells: no difference
    assert transfer("e", CARD, features, sets, targets, [1, 3, 5], seed=0)[1].scores == found[1].scores


def test_the_figures_are_a_k_nn_written_out_at_the_k_chosen(
    world: tuple[dict[str, CellSet], dict[str, CellSet]],
) -> None:
    sets, targets = world
    features = {
        name: features_of_sides(cells, 0.9, seed) for seed, (name, cells) in enumerate((sets | targets).items())
    }
    for row in transfer("e", CARD, features, sets, targets, [1, 3, 7], seed=0):
        x = np.concatenate([features[name] for name in row.fit])
        side = np.concatenate([[sets[name].classes[i].side for i in sets[name].labels] for name in row.fit])
        x, side = x[side != "neither"], side[side != "neither"]
        shares = []
        for query in features["cells"]:
            alike = x @ query / np.linalg.norm(x, axis=1)
            shares.append(float((side[np.argsort(-alike)[: row.k]] == "positive").mean()))
        truth = np.repeat([1, 0], 20)
        assert row.scores["sensitivity"][0] == pytest.approx(np.mean(np.array(shares[:20]) > 0.5))
        assert row.scores["specificity"][0] == pytest.approx(np.mean(np.array(shares[20:]) < 0.5))
        assert row.scores["auc"][0] == pytest.approx(roc_auc_score(truth, shares))
        assert row.k in (1, 3, 7)
        low, high = row.scores["auc"][1] or (0, 0)
        assert low < row.scores["auc"][0] < high


def test_pictures_of_two_sets_are_never_one_group(world: tuple[dict[str, CellSet], dict[str, CellSet]]) -> None:
    sets = {
        name: replace(cells, groups=tuple(f"picture {i % 5}" for i in range(len(cells.labels))))
        for name, cells in world[0].items()
    }
    features = {name: features_of_sides(cells, 0.1) for name, cells in sets.items()}
    x, y, groups = fitting_set(("herlev", "sipakmed"), features, sets)
    assert len(x) == len(y) == 56 + 32
    assert groups is not None
    assert set(groups[:56]) == set(range(5))
    assert set(groups[56:]) == set(range(5, 10))
    alone = fitting_set(("herlev",), features, {"herlev": world[0]["herlev"]})[2]
    assert alone is None, "no names of pictures"


def test_an_encoder_is_tested_on_the_fold_it_held_out_and_never_on_what_it_saw(
    world: tuple[dict[str, CellSet], dict[str, CellSet]],
) -> None:
    cells = world[1]["cells"]
    held_out = replace(CARD, fold=1, train_slides=("s0", "s4"))
    members, fold, leak = cells_to_test(held_out, cells, False)
    assert (members.tolist(), fold, leak) == (list(range(20, 40)), 1, False)
    seen = replace(CARD, fold=1, train_slides=("s0", "s5"))
    with pytest.raises(UsageError, match="encoder e was trained on 1 of the slides to test on: s5"):
        cells_to_test(seen, cells, False)
    assert cells_to_test(seen, cells, True)[2]
    with pytest.raises(UsageError, match="trained on 2 of the slides"):
        cells_to_test(replace(seen, fold=None), cells, False)
    with pytest.raises(UsageError, match="held fold 3 out, and cells has no cells of that fold"):
        cells_to_test(replace(CARD, fold=3), cells, False)


def test_what_cannot_be_fitted_or_tested_is_refused(world: tuple[dict[str, CellSet], dict[str, CellSet]]) -> None:
    sets, targets = world
    check_targets(sets, targets)
    positives = {"herlev": cell_set("herlev", [0, 1], HERLEV)}
    check_targets(positives, {})
    with pytest.raises(UsageError, match="no set has both positive and negative cells to learn from"):
        check_targets(positives, targets)
    with pytest.raises(UsageError, match="no set has both"):
        check_targets({"own": targets["cells"]}, targets)
    assert fitting_names(sets | {"own": targets["cells"]}, targets) == ["herlev", "sipakmed"]
    with pytest.raises(UsageError, match=r"--targets\.odd: none of its cells is positive or negative"):
        check_targets(sets, {"odd": cell_set("odd", [0], (SIPAKMED[2],))})


def test_the_published_figures_are_those_of_the_table() -> None:
    assert published.TRANSFER["cells"]["herlev"]["ResNet50 ImageNet"] == 93.7
    assert published.TRANSFER["cells"]["sipakmed"]["ResNet50 DINO"] == 84.0
    assert published.TRANSFER["tiles"]["herlev + sipakmed"]["ViT-S/16 ImageNet"] == 21.2
    assert published.TRANSFER["tiles"]["sipakmed"]["ViT-S/16 DINO"] == 63.6
    assert {tuple(row) for of in published.TRANSFER.values() for row in of.values()} == {tuple(published._ENCODERS)}


# --- from the slides to the page ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom slides, their shards, and cells and tiles cut out of them."""
    folder = tmp_path_factory.mktemp("transfer")
    slides = folder / "cohort" / "slides.csv"
    options = ["--slides=4", "--prevalence=0.5", "--folds=2", "--diameter_mm=0.7", "--abnormal=0.05", "--cell_sets=6"]
    assert main(["phantom", str(folder / "cohort"), *options, "--mpp=0.5", "--workers=1"]) == 0
    assert main(["tile", f"--slides={slides}", f"--out={folder / 'shards'}", "--workers=1"]) == 0
    words = [f"--slides={slides}", f"--shards={folder / 'shards'}", f"--out={folder / 'sets'}", "--workers=1"]
    assert main(["crop", "-c", "configs/crop.yaml", *words]) == 0
    return folder


def run(cohort: Path, out: Path, *words: str) -> int:
    sets = [f"--sets.{name}={cohort / 'cohort' / 'cells' / name}" for name in ("herlev", "sipakmed")]
    targets = [f"--targets.{name}={cohort / 'sets' / name}.csv" for name in ("cells", "tiles")]
    options = ["--ks=[1,3]", "--runs=1", "--device=cpu", f"--out={out}", f"--cache={cohort / 'cache'}"]
    return main(["probe", *sets, *targets, *options, *words])


def test_the_report_has_the_transfer_to_cells_and_tiles_of_phantom_slides(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(cohort, out, "--encoders={a: random:test_vit, b: random:resnet10t}") == 0
    found = json.loads((out / "results.json").read_text())
    rows = found["transfer"]
    assert [(r["encoder"], r["fit"], r["target"]) for r in rows] == [
        (e, f, t) for e in "ab" for f in (["herlev"], ["sipakmed"], ["herlev", "sipakmed"]) for t in ("cells", "tiles")
    ]
    for row in rows:
        assert row["chosen"] == "inside the fitting set"
        assert 0 <= row["sensitivity"]["value"] <= 1
        assert ("specificity" in row) == (row["target"] == "tiles"), "phantoms annotate positive cells only"
    assert found["targets"]["tiles"]["images"] == rows[1]["positives"] + rows[1]["negatives"]
    assert found["published"]["transfer_sensitivity"]["tiles"]["herlev"]["ViT-S/16 DINO"] == 69.5
    page = (out / "report.html").read_text()
    for text in ("On cells:", "On tiles:", "herlev + sipakmed", "Published sensitivity, not measured here", "63.6"):
        assert text in page, text
    (table,) = out.glob("wandb/offline-run-*/files/media/table/transfer_*.table.json")
    logged = json.loads(table.read_text())
    assert [line[3] for line in logged["data"]] == [row["k"] for row in rows]
    assert logged["data"][1][9] == pytest.approx(rows[1]["sensitivity"]["value"])
    assert list(out.glob("wandb/offline-run-*/files/media/table/published_transfer_*.table.json"))
    assert "Transfer, %" in capsys.readouterr().out
    wandb.teardown()


def test_an_encoder_that_saw_the_slides_is_refused_or_marked(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder("random:test_vit", "cpu")
    file = tmp_path / "seen.safetensors"
    slide_ids = [line.split(",")[0] for line in (cohort / "cohort" / "slides.csv").read_text().splitlines()[1:]]
    export_encoder(file, encoder.network, replace(encoder.card, train_slides=tuple(slide_ids)))
    words = (f"--encoders=[{file}]", f"--sets.own={cohort / 'sets' / 'tiles.csv'}")
    assert run(cohort, tmp_path / "no", *words) == 2
    error = capsys.readouterr().err
    assert "was trained on" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "no").exists()
    assert run(cohort, tmp_path / "yes", *words, "--allow_leak=true") == 0
    found = json.loads((tmp_path / "yes" / "results.json").read_text())
    assert found["leaks"] == {"own": ["seen"]}
    assert len(found["transfer"]) == 6
    assert all(row["leak"] for row in found["transfer"])
    page, printed = (tmp_path / "yes" / "report.html").read_text(), capsys.readouterr()
    assert "LEAK: seen was trained on slides of this set" in page
    assert "LEAK: these encoders were trained on slides that they are tested on here" in page
    assert "LEAK: seen saw slides of own in training" in printed.err
    assert "LEAK" in printed.out
    wandb.teardown()
