"""What a test leaves: its figures by hand, groups, top tiles against the truth, the page, W&B; and early stopping."""

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from papsmear.cli import main
from papsmear.cohort import Slide
from papsmear.mil.bags import BagCard, read_bag, write_bag
from papsmear.mil.calibration import Calibration, brier
from papsmear.mil.data import BagData
from papsmear.mil.delong import delong
from papsmear.mil.evaluation import evaluate
from papsmear.mil.metrics import Share, decisions, unread
from papsmear.mil.model import load_head
from papsmear.mil.resampling import percentiles, resampled_aucs
from papsmear.mil.truth import NOT_ABNORMAL, TopTiles, abnormal_cells, top_tiles
from papsmear.mil.verdicts import Verdicts
from papsmear.tiling.cut import TileSettings

CARD = BagCard("random:test_vit", "ab" * 32, TileSettings(area="all"), 10.0)
N_TILES, WIDTH, SIGNAL = 40, 8, (7, 8, 30)


def slide(number: int, label: int, **row: str) -> Slide:
    return Slide(f"s{number}", Path("s"), label, f"s{number}", 0, "", None, None, row)


# Figures


@pytest.mark.parametrize(("count", "of"), [(0, 5), (5, 5), (3, 7), (50, 53)])
def test_wilson_bounds_solve_the_score_equation(count: int, of: int) -> None:
    """At a bound p the observed share is 1.96 standard errors, those of p itself, away (Wilson 1927)."""
    for p in Share(count, of).interval or ():
        assert abs(count / of - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / of), abs=1e-6)


def test_no_slides_have_no_share() -> None:
    assert (Share(0, 0).value, Share(0, 0).interval) == (None, None)


def test_slides_of_one_patient_are_worth_fewer_by_hand() -> None:
    """Two slides of each of four patients, of which 2, 2, 0 and 1 are hits: 1.956 times the binomial variance."""
    hits, whose = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool), np.repeat(np.arange(4), 2)
    deviations = (2 - 1.25) ** 2 * 2 + 1.25**2 + 0.25**2
    assert Share.among(hits, whose).worth == pytest.approx(8 / (4 / 3 * deviations / 8**2 / (5 / 8 * 3 / 8 / 8)))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12), seed=st.integers(0, 999))
def test_slides_are_worth_between_those_of_alike_patients_and_all(sizes: list[int], seed: int) -> None:
    whose = np.repeat(np.arange(len(sizes)), sizes)
    hits = np.random.default_rng(seed).random(len(whose)) < 0.7
    share = Share.among(hits, whose)
    low, high = Share(share.count, share.of).interval or (0, 1)
    wide = share.interval or (1, 0)
    assert wide[0] <= low + 1e-12
    assert wide[1] >= high - 1e-12
    if len(sizes) == len(whose):
        assert share.worth is None
    else:
        assert len(whose) ** 2 / sum(size**2 for size in sizes) - 1e-9 <= (share.worth or 0) <= len(whose) + 1e-9


@pytest.mark.parametrize("of_ten", [0, 3, 10])
def test_slides_that_repeat_a_patients_other_slide_tell_nothing_new(of_ten: int) -> None:
    hits = np.repeat(np.arange(10) < of_ten, 2)
    assert Share.among(hits, np.repeat(np.arange(10), 2)).interval == pytest.approx(Share(of_ten, 10).interval)


def test_intervals_of_shares_hold_where_slides_of_a_patient_are_alike() -> None:
    """Patients of one to four slides whose own sensitivities differ: 95 of 100 intervals hold that of all patients."""
    random, within, naive = np.random.default_rng(0), 0, 0
    whose = np.repeat(np.arange(60), np.tile([1, 2, 3, 4], 15))
    for _ in range(2000):
        hits = random.random(len(whose)) < random.beta(1.6, 0.4, 60)[whose]  # mean 0.8, correlation 1/3
        share = Share.among(hits, whose)
        within += (share.interval or (1, 0))[0] <= 0.8 <= (share.interval or (1, 0))[1]
        alone = Share(share.count, share.of).interval or (1, 0)
        naive += alone[0] <= 0.8 <= alone[1]
    assert 0.93 < within / 2000 < 0.97
    assert naive / 2000 < 0.9


def test_decisions_and_what_nobody_needs_to_read_by_hand() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0])
    called = np.array([1, 1, 0, 1, 0, 0, 0], bool)
    found = decisions(y, called, np.arange(7))
    assert found == {
        "sensitivity": Share(2, 3),
        "specificity": Share(3, 4),
        "ppv": Share(2, 3),
        "npv": Share(3, 4),
    }
    below = unread(y, np.array([0.9, 0.8, 0.4, 0.5, 0.4, 0.3, 0.1]))
    assert below.tolist() == [False] * 5 + [True] * 2  # a tie must be read


def test_folds_are_ranked_each_for_itself() -> None:
    """Two perfect folds whose probabilities lie at different heights."""
    parts = [
        Verdicts.of(
            [slide(10 * fold + n, n % 2) for n in range(6)], fold, np.array([0, 1, 0.2, 1.2, 0.1, 2]) + 9 * fold, c, 0.5
        )
        for fold, c in ((0, Calibration()), (1, Calibration(2.0, -1.0)))
    ]
    found = evaluate(Verdicts.together(parts))
    assert (found.auc, found.average_precision, found.unread) == (1, 1, Share(6, 6))
    assert (found.slides, found.patients, found.resampled) == (12, 12, "slides")
    assert (found.auc_delong, found.auc_bootstrap) == (None, None)
    assert found.shares["sensitivity"].of == 6
    assert found.brier == pytest.approx(brier(np.tile([0, 1], 6), 1 / (1 + np.exp(-Verdicts.together(parts).log_odds))))


def test_slides_of_one_patient_widen_the_auc() -> None:
    random = np.random.default_rng(0)
    logits = np.repeat(random.normal(size=20), 2) + np.arange(40) // 2 % 2
    slides = [slide(n, n // 2 % 2) for n in range(40)]
    alone = evaluate(Verdicts.of(slides, 0, logits, Calibration(), 0.5))
    pairs = [replace(one, patient_id=f"p{n // 2}") for n, one in enumerate(slides)]
    found = evaluate(Verdicts.of(pairs, 0, logits, Calibration(), 0.5))
    assert (alone.patients, alone.resampled, found.patients, found.resampled) == (40, "slides", 20, "patients")
    y, whose = np.arange(40) // 2 % 2, np.arange(40) // 2
    for name, share in found.shares.items():
        assert share.worth is not None
        assert (share.count, alone.shares[name].worth) == (alone.shares[name].count, None)
    assert found.unread == Share.among((logits < logits[y == 1].min())[y == 0], whose[y == 0])
    assert alone.auc_delong == delong(y, logits[None]).interval()
    assert found.auc_delong == delong(y, logits[None], whose).interval()
    assert found.auc_bootstrap == percentiles(resampled_aucs(y, logits[None], 0, whose)[0])
    assert found.auc == alone.auc


def test_groups_are_told_apart_where_a_column_says_so() -> None:
    slides = [slide(0, 1, bethesda="HSIL"), slide(1, 1, bethesda="ASC-US"), slide(2, 0, bethesda="NILM"), slide(3, 0)]
    said = Verdicts.of(slides, 0, np.array([2.0, -1, -2, 1]), Calibration(), 0.5)
    found = evaluate(said).groups
    assert set(found) == {"bethesda"}
    assert {name: shares["sensitivity"] for name, shares in found["bethesda"].items()} == {
        "HSIL": Share(1, 1),
        "ASC-US": Share(0, 1),
        "NILM": Share(0, 0),
    }
    assert found["bethesda"]["NILM"]["specificity"] == Share(1, 1)


# Top tiles


def polygon(x: float, y: float, name: str = "HSIL") -> dict[str, Any]:
    ring = [[x - 2, y - 2], [x + 2, y - 2], [x + 2, y + 2], [x - 2, y + 2], [x - 2, y - 2]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": name}}}


def test_top_tiles_that_hold_a_cell_are_counted() -> None:
    xy = np.stack([10 * np.arange(30), np.zeros(30)], axis=1).astype(np.int32)
    cells = np.array([[15.0, 5], [19, 9], [205, 5], [295, 50]])  # two in tile 1, one in tile 20, one in none
    found = top_tiles([20, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1], xy, 10.0, cells)
    assert found == [TopTiles(10, 1, 10, 1, pytest.approx(10 * 2 / 30)), TopTiles(20, 1, 11, 2, pytest.approx(22 / 30))]
    assert TopTiles.together([found[0], found[0]]).share == 0.1


def test_cells_that_are_not_abnormal_do_not_count(root: Path, tmp_path: Path) -> None:
    features = [polygon(15, 5), polygon(25, 5, "NILM"), polygon(35, 5, "Ignore*"), polygon(45, 5, "HSIL: p16")]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert abnormal_cells(tmp_path / "a.geojson").tolist() == [[15, 5], [45, 5]]
    classes = yaml.safe_load((root / "configs" / "crop.yaml").read_text())["classes"]
    assert set(NOT_ABNORMAL) == {name for name, side in classes.items() if side != "positive"}


# By the command line


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of eight slides, half of them positive, with three tiles shifted and annotated on each of these.

    Each patient has two slides.
    """
    folder, random = tmp_path_factory.mktemp("outcome"), np.random.default_rng(0)
    lines = ["slide_id,path,label,fold,annotations,site,bethesda,patient_id"]
    xy = np.stack([10 * np.arange(N_TILES), np.zeros(N_TILES)], axis=1).astype(np.int32)
    for n in range(24):
        label = n % 2
        tiles = random.normal(size=(N_TILES, WIDTH))
        tiles[list(SIGNAL), 3] += 12 * label
        write_bag(folder / "features" / f"s{n}.h5", tiles.astype(np.float16), xy, CARD)
        cells = [polygon(10 * tile + 5, 5) for tile in SIGNAL] if label else []
        content = {"type": "FeatureCollection", "features": cells}
        (folder / f"s{n}.geojson").write_text(json.dumps(content) if n != 21 else "{")  # one that is broken
        said = f"{'AB'[n % 4 > 1]},{['NILM', 'HSIL'][label]},p{n % 12}"
        lines.append(f"s{n},s{n}.svs,{label},{n // 2 % 3},s{n}.geojson,{said}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def lightning(root: Path, cohort: Path) -> Callable[..., int]:
    """Runs a training command on the cohort with the shipped configuration; `words` come last."""

    def run(command: str, folder: Path, *words: str) -> int:
        common = [f"-c={root / 'configs' / 'mil.yaml'}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
        places = [f"--trainer.default_root_dir={folder}", f"--data.slides={cohort / 'slides.csv'}"]
        quick = ["--model.lr=5e-2", "--model.head=max"]
        return main([command, *common, *places, f"--data.features={cohort / 'features'}", *quick, *words])

    return run


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, lightning: Callable[..., int]) -> Path:
    """A trained and tested run; not to be changed."""
    run = tmp_path_factory.mktemp("tested") / "run"
    words = ["--trainer.max_epochs=6", "--model.operating_point={sensitivity: 1.0}"]
    assert lightning("fit", run, *words) == 0
    assert lightning("test", run, *words, "--trainer.logger=true") == 0
    return run


def test_the_top_tiles_of_a_test_are_those_of_the_head(tested: Path, cohort: Path) -> None:
    found = json.loads((tested / "test.json").read_text())["top_tiles"]
    head, hits = load_head(tested), 0
    for n in (1, 7, 13, 19):  # the positive slides of fold 0
        _, scores = head.judge(read_bag(cohort / "features" / f"s{n}.h5").features)
        hits += len(set(np.argsort(-scores, kind="stable")[:10]) & set(SIGNAL))
    top = found[0]
    assert (top["top"], top["slides"], top["tiles"], top["hits"]) == (10, 4, 40, hits)
    assert hits >= 10  # of 12
    assert top["by_chance"] == pytest.approx(4 * 10 * 3 / N_TILES)


def test_test_json_agrees_with_test_csv_and_the_card(tested: Path) -> None:
    told, card = json.loads((tested / "test.json").read_text()), load_head(tested).card
    with (tested / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    calibration = Calibration(told["temperature"], told["prior_log_odds"])
    assert calibration == card.calibration
    assert calibration != Calibration()
    p = calibration.probability(np.array([float(row["logit"]) for row in rows]))
    assert [float(row["probability"]) for row in rows] == pytest.approx(p.tolist(), abs=1e-6)
    assert [row["positive"] for row in rows] == [str(int(v >= card.threshold)) for v in p]
    y = np.array([int(row["label"]) for row in rows])
    assert told["brier"] == pytest.approx(brier(y, p))
    assert told["sensitivity"] == np.mean([row["positive"] == "1" for row in rows if row["label"] == "1"])
    assert set(told["groups"]) == {"site", "bethesda"}
    assert (told["slides"], told["patients"], told["resampled"]) == (8, 4, "patients")


def test_the_page_stands_for_itself_and_w_and_b_has_the_same(tested: Path) -> None:
    page = (tested / "test.html").read_text()
    assert "Research use only" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    for said in ("By Bethesda class", "By site", "hold an annotated abnormal cell", "ROC curve", "before calibration"):
        assert said in page
    assert "bootstrap of the 4 patients" in page
    assert "LEAK" not in page
    assert len(list((tested / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert list((tested / "wandb").glob("offline-run-*/files/media/images/test/roc_*.png"))


def test_broken_annotations_do_not_cost_the_test(
    cohort: Path, lightning: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lightning("fit", tmp_path, "--trainer.max_epochs=1", "--data.fold=1") == 0
    assert lightning("test", tmp_path, "--data.fold=1") == 0
    assert "s21: its top tiles are not counted" in capsys.readouterr().err
    assert json.loads((tmp_path / "test.json").read_text())["top_tiles"][0]["slides"] == 3


def test_balance_changes_the_draws(lightning: Callable[..., int], tmp_path: Path) -> None:
    """With as many positive as negative slides the weights in the loss are 1 either way."""
    for balance in ("none", "site"):
        assert lightning("fit", tmp_path / balance, "--trainer.max_epochs=1", f"--data.balance={balance}") == 0
    a, b = (load_head(tmp_path / name).head.state_dict() for name in ("none", "site"))
    assert not all(torch.equal(a[key], b[key]) for key in a)


def test_classes_are_balanced_once_by_weights_or_by_draws(cohort: Path, tmp_path: Path) -> None:
    lines = (cohort / "slides.csv").read_text().splitlines()
    few = [line for n, line in enumerate(lines) if n < 7 or n % 4 or ",1," not in line]  # fewer positive slides
    (tmp_path / "slides.csv").write_text("\n".join(few) + "\n")
    for balance in ("none", "class"):
        data = BagData(cohort / "features", tmp_path / "slides.csv", balance=balance)  # type: ignore[arg-type]
        data.setup("fit")
        labels = [slide.label for slide in data.parts["train"]]
        ratio = labels.count(0) / labels.count(1)
        assert ratio > 1
        assert data.positive_weight() == (ratio if balance == "none" else 1)
        assert data.prior_log_odds() == pytest.approx(-math.log(ratio))
        drawn = [slide.label for batch in data.train_dataloader() for slide in batch]
        assert abs(drawn.count(1) - drawn.count(0)) <= 2 if balance == "class" else drawn.count(1) == labels.count(1)


# Early stopping


def epochs(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]) + 1


def test_a_run_without_progress_stops_and_stays_so(lightning: Callable[..., int], tmp_path: Path) -> None:
    words = ["--trainer.max_epochs=12", "--model.lr=0", "--model.patience=2"]
    assert lightning("fit", tmp_path, *words) == 0
    assert epochs(tmp_path) == 3  # the first is the best, two more bring nothing
    kept = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    assert lightning("fit", tmp_path, *words) == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == kept


def test_a_resumed_run_has_the_patience_that_it_had(lightning: Callable[..., int], tmp_path: Path) -> None:
    words = ["--model.lr=0", "--model.patience=4"]
    for until in (2, 4, 12):
        assert lightning("fit", tmp_path, *words, f"--trainer.max_epochs={until}") == 0
    assert epochs(tmp_path) == 5
    assert lightning("fit", tmp_path / "never", "--model.lr=0", "--model.patience=null", "--trainer.max_epochs=8") == 0
    assert epochs(tmp_path / "never") == 8
