"""`papsmear crossval` on small bags: the table against its parts, what is finished, what fails, leaks, comparisons."""

import csv
import gc
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from papsmear.cli import main
from papsmear.cohort import Slide
from papsmear.mil.bags import BagCard, write_bag, write_encoder_card
from papsmear.mil.calibration import Calibration
from papsmear.mil.comparison import comparisons
from papsmear.mil.delong import delong
from papsmear.mil.runs import FoldResult, System
from papsmear.mil.shelf import Shelf
from papsmear.mil.verdicts import Verdicts
from papsmear.ssl.card import EncoderCard
from papsmear.tiling.cut import TileSettings

N_SLIDES, N_TILES, WIDTH = 32, 12, 8
CARD = BagCard("random:test_vit", "ab" * 32, TileSettings(area="all"), 10.0)
ENCODER = EncoderCard(CARD.encoder, "test_vit", 160, (0.5,) * 3, (0.5,) * 3, sha256=CARD.encoder_sha256)


def write_bags(folder: Path, strength: float) -> None:
    """Noise where two tiles of a positive slide are shifted by `strength`, and some slides lie."""
    random = np.random.default_rng(0)
    for n in range(N_SLIDES):
        tiles = random.normal(size=(N_TILES, WIDTH))
        tiles[4:6, 3] += strength * ((n // 4 % 2 == 0) != (n % 7 == 3))
        xy = np.stack([10 * np.arange(N_TILES), np.zeros(N_TILES)], axis=1).astype(np.int32)
        write_bag(folder / f"s{n}.h5", tiles.astype(np.float16), xy, CARD)
    write_encoder_card(folder, ENCODER)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folds of eight slides, four of them positive, with the bags of two encoders, of one for each fold.

    Each patient has two slides.
    """
    folder = tmp_path_factory.mktemp("crossval")
    lines = [f"s{n},s{n}.svs,{int(n // 4 % 2 == 0)},{n % 4},{'AB'[n % 3 == 0]},p{n % 16}" for n in range(N_SLIDES)]
    (folder / "slides.csv").write_text("\n".join(["slide_id,path,label,fold,site,patient_id", *lines]) + "\n")
    for fold in range(4):
        write_bags(folder / f"good-fold{fold}", 9.0)
        write_bags(folder / f"poor-fold{fold}", 0.5)
    return folder


@pytest.fixture(scope="module")
def crossval(root: Path, cohort: Path) -> Callable[..., int]:
    """Runs the command with the shipped configuration; `words` come last."""

    def run(out: Path, *words: str) -> int:
        common = ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.logger=false", "--model.lr=5e-2"]
        places = [
            f"--out={out}",
            f"--data.slides={cohort / 'slides.csv'}",
            f"--data.features={cohort}/good-fold{{fold}}",
        ]
        return main(["crossval", f"-c={root / 'configs' / 'mil.yaml'}", *common, *places, *words])

    return run


@pytest.fixture(scope="module")
def both(cohort: Path, crossval: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on the bags of two encoders, three of the folds; not to be changed."""
    out = tmp_path_factory.mktemp("both")
    words = [f"--data.features={cohort}/{{encoder}}-fold{{fold}}", "--encoders=[good, poor]", "--heads=[max]"]
    assert crossval(out, *words, "--folds=[0, 1, 2]") == 0
    return out


def test_a_run_leaves_no_bags_in_memory(crossval: Callable[..., int], tmp_path: Path) -> None:
    gc.collect()
    gc.disable()  # so that nothing else frees them
    try:
        assert crossval(tmp_path, "--heads=[max]", "--folds=[0, 1]") == 0
        assert not [shelf for shelf in gc.get_objects() if type(shelf) is Shelf]
    finally:
        gc.enable()


def told(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "crossval.json").read_text())
    return found


def judged(run: Path) -> tuple[np.ndarray, np.ndarray]:
    with (run / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    return np.array([int(row["label"]) for row in rows]), np.array([float(row["logit"]) for row in rows])


def test_the_table_is_that_of_its_runs(both: Path) -> None:
    found = told(both)
    systems = {(row["encoder"], row["head"]): row for row in found["systems"]}
    assert set(systems) == {("good", "max"), ("poor", "max")}
    assert (found["tuning_fold"], found["folds"], found["failed"], found["leak"]) == (0, [0, 1, 2], {}, False)
    for (encoder, head), row in systems.items():
        runs = [both / f"{encoder}-{head}-fold{fold}" for fold in range(3)]
        aucs = [roc_auc_score(*judged(run)) for run in runs]
        assert row["auc_all_folds"]["mean"] == pytest.approx(np.mean(aucs))
        assert row["auc_all_folds"]["sd"] == pytest.approx(np.std(aucs, ddof=1))
        assert row["auc_as_published"]["mean"] == pytest.approx(np.mean(aucs[1:]))
        assert row["auc_as_published"]["folds"] == [1, 2]
        tests = [json.loads((run / "test.json").read_text()) for run in runs]
        assert row["tests"] == tests
        whole = row["all_folds"]
        for name in ("true_positives", "false_positives", "true_negatives", "false_negatives", "slides"):
            assert whole[name] == sum(test[name] for test in tests)
        assert whole["brier"] == pytest.approx(np.mean([test["brier"] for test in tests]))
        assert whole["groups"]["site"]["A"]["sensitivity"]["of"] == sum(
            test["groups"]["site"]["A"]["sensitivity"]["of"] for test in tests
        )
    assert systems["good", "max"]["auc_all_folds"]["mean"] > systems["poor", "max"]["auc_all_folds"]["mean"] + 0.1


def test_heads_are_compared_on_the_same_slides(both: Path) -> None:
    pairs = {(tuple(c["first"]), tuple(c["second"])): c for c in told(both)["comparisons"]}
    assert len(pairs) == 1
    found = pairs[("good", "max"), ("poor", "max")]
    differences, variances = [], []
    for fold in range(3):
        (y, a), (_, b) = (judged(both / f"{encoder}-max-fold{fold}") for encoder in ("good", "poor"))
        aucs = delong(y, np.stack([a, b]), np.tile(np.arange(4), 2))  # slides s0, s4, … s28 of p0, p4, p8 and p12
        differences.append(aucs.auc[0] - aucs.auc[1])
        c = aucs.covariance
        variances.append(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    assert found["delong"]["value"] == pytest.approx(np.mean(differences))
    low, high = found["delong"]["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(sum(variances)) / 3, rel=1e-3)
    assert (found["slides"], found["patients"]) == (24, 12)
    low, high = found["bootstrap_interval_95"]
    assert low < np.mean(differences) < high


def test_pairs_share_the_head_or_the_encoder() -> None:
    def system(encoder: str, head: str, folds: tuple[int, ...], seed: int) -> System:
        random, tests = np.random.default_rng(seed), {}
        for fold in folds:
            slides = [Slide(f"s{n}", Path("s"), n % 2, f"s{n}", fold, "", None, None, {}) for n in range(12)]
            said = Verdicts.of(slides, fold, random.normal(size=12), Calibration(), 0.5)
            tests[fold] = FoldResult({}, said, [])
        return System(encoder, head, tests)

    systems = [system("a", "x", (0, 1), 1), system("a", "y", (1, 2), 2), system("b", "x", (0, 1), 3)]
    found = comparisons([*systems, system("b", "y", (3,), 4)])
    assert [(c.first.name, c.second.name, c.folds) for c in found] == [
        ("a x", "a y", (1,)),  # the folds that both have
        ("a x", "b x", (0, 1)),
    ]  # "b y" shares a head or an encoder with others, but no fold
    same = comparisons([systems[0], system("c", "x", (0, 1), 1)])[0]
    assert (same.delong.value, same.delong.p, same.bootstrap, same.clear) == (0, None, None, False)


def test_a_run_is_that_of_lightning_fit_and_a_job_s_run_counts(
    both: Path,
    cohort: Path,
    root: Path,
    crossval: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "good-max-fold2"
    assert "/mil/$arch-$head-fold$fold" in (root / "slurm" / "mil.sbatch").read_text()
    words = [f"-c={root / 'configs' / 'mil.yaml'}", "--trainer.max_epochs=3", "--trainer.accelerator=cpu"]
    words += ["--trainer.logger=false", "--model.lr=5e-2", "--model.head=max", "--data.fold=2"]
    words += [f"--trainer.default_root_dir={run}", f"--data.slides={cohort / 'slides.csv'}"]
    words += [f"--data.features={cohort}/good-fold2"]
    assert main(["fit", *words]) == main(["test", *words]) == 0
    assert (run / "head.safetensors").read_bytes() == (both / run.name / "head.safetensors").read_bytes()
    assert (run / "test.json").read_text() == (both / run.name / "test.json").read_text()
    capsys.readouterr()
    words = [f"--data.features={cohort}/{{encoder}}-fold{{fold}}", "--encoders=[good]", "--heads=[max]", "--folds=[2]"]
    assert crossval(tmp_path, *words) == 0
    assert "1 runs, 1 of them finished before" in capsys.readouterr().err
    assert told(tmp_path)["systems"][0]["tests"] == [json.loads((run / "test.json").read_text())]


def test_what_is_finished_is_not_run_again(
    cohort: Path, crossval: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in tmp_path.rglob("*.ckpt")}

    assert crossval(tmp_path, "--folds=[1, 2]") == 0
    before, table = kept(), told(tmp_path)
    (tmp_path / "gated_attention-fold2" / "test.json").unlink()  # as if killed before the test
    (tmp_path / "crossval.json").unlink()
    capsys.readouterr()
    assert crossval(tmp_path, "--folds=[1, 2]") == 0
    assert "2 runs, 1 of them finished before" in (said := capsys.readouterr().err)
    assert "run 1 of 1: gated_attention-fold2" in said
    assert told(tmp_path) == table
    one = str(tmp_path / "gated_attention-fold1")
    assert all(time == before[file] for file, time in kept().items() if file.startswith(one))
    assert table["systems"][0]["auc_as_published"]["folds"] == [1, 2]

    assert crossval(tmp_path, "--folds=[1, 2]", "--model.weight_decay=0.5") == 2  # other settings are refused
    assert "holds a run with other settings" in capsys.readouterr().err
    assert crossval(tmp_path, "--folds=[1]", "--trainer.max_epochs=4") == 0  # longer training goes on
    assert "going on from" in capsys.readouterr().err
    assert kept()[f"{one}/checkpoints/last.ckpt"] > before[f"{one}/checkpoints/last.ckpt"]

    lines = (cohort / "slides.csv").read_text().replace("s1,s1.svs,1,1", "s1,s1.svs,0,1")
    (tmp_path / "slides.csv").write_text(lines)
    file = tmp_path / "gated_attention-fold1" / "config.yaml"
    file.write_text(file.read_text().replace(str(cohort / "slides.csv"), str(tmp_path / "slides.csv")))
    (file.parent / "test.json").touch()
    words = ["--folds=[1]", "--trainer.max_epochs=4", f"--data.slides={tmp_path / 'slides.csv'}"]
    assert crossval(tmp_path, *words) == 2
    assert "fold 1 has other slides or labels now; delete" in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_the_others_are_done(
    crossval: Callable[..., int], cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in range(4):
        write_bags(tmp_path / f"bags-fold{fold}", 4.0)
    file = tmp_path / "bags-fold3" / "s3.h5"
    file.write_bytes(file.read_bytes()[:900])
    out = tmp_path / "out"
    words = ["--heads=[mean]", "--folds=[0, 3]", f"--data.features={tmp_path}/bags-fold{{fold}}"]
    assert crossval(out, *words) == 1
    assert "failed: mean-fold3:" in capsys.readouterr().err
    assert set(told(out)["failed"]) == {"mean-fold3"}
    assert "mean-fold3</b> failed" in (out / "crossval.html").read_text()
    assert told(out)["systems"][0]["auc_as_published"] is None  # only the tuning fold is left


def test_a_leak_marks_every_figure(
    crossval: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bags(tmp_path / "bags", 4.0)
    write_encoder_card(tmp_path / "bags", replace(ENCODER, train_slides=("s1",)))
    words = ["--heads=[mean]", "--folds=[1, 2]", f"--data.features={tmp_path}/bags"]
    assert crossval(tmp_path / "out", *words) == 2
    assert "s1" in capsys.readouterr().err
    assert crossval(tmp_path / "out", *words, "--data.allow_leak=true") == 0
    assert "LEAK cross-validation" in capsys.readouterr().out
    assert told(tmp_path / "out")["leak"] is True
    page = (tmp_path / "out" / "crossval.html").read_text()
    assert "LEAK Cross-validation" in page
    assert all("LEAK" in title for title in re.findall(r"<h[12]>(.*?)</h[12]>", page))


def test_the_page_stands_for_itself(both: Path) -> None:
    page = (both / "crossval.html").read_text()
    assert "the bootstrap draws the 12 patients" in page
    assert "Research use only" in page
    for encoder in ("good", "poor"):
        assert f"{encoder}-max-fold2/test.html" in page
        assert (both / f"{encoder}-max-fold2" / "test.html").is_file()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|[\w-]+/test\.html)""", page)
    assert "LEAK" not in page


def test_the_table_goes_to_w_and_b(
    both: Path, cohort: Path, crossval: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(both, tmp_path / "copy")  # with its times: the runs stay finished
    words = [f"--data.features={cohort}/{{encoder}}-fold{{fold}}", "--encoders=[good, poor]", "--heads=[max]"]
    assert crossval(out, *words, "--folds=[0, 1, 2]", "--trainer.logger=true") == 0
    assert "6 runs, 6 of them finished before" in capsys.readouterr().err
    assert len(list(out.glob("wandb/offline-run-*/*.wandb"))) == 1
    media = [file.name for file in out.glob("wandb/offline-run-*/files/media/*/crossval/*")]
    for name in ("tests", "comparisons", "auc", "roc"):
        assert any(file.startswith(f"{name}_") for file in media), media


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds=[0, 9]"], "--folds: no fold 9 in it"),
        (["--encoders=[a, b]"], "give names in --encoders, and {encoder} where"),
        (["--data.features=x/{encoder}"], "give names in --encoders, and {encoder} where"),
        (["--heads=[mean, max]", "--model.head_args={hidden: 3}"], "model.head_args suit one head"),
        (["--heads=[maximum]"], "head 'maximum': there is no such head"),
        (["--data.slides=nowhere.csv"], "nowhere.csv: cannot read"),
        (["--data.balance=scanner"], "data.balance=scanner: no scanner in slides.csv for s"),
        (["--model.operating_point={sensitivity: 2}"], "model.operating_point: sensitivity 2"),
        (["--model.patience=0"], "model.patience=0"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: list[str], said: str, crossval: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crossval(tmp_path, *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_variant_is_a_name_for_changes_to_the_model(crossval: Callable[..., int], tmp_path: Path) -> None:
    variants = "--heads={sure: {head: mean, operating_point: {sensitivity: 1.0}}, wide: {head: attention, lr: 0.1}}"
    assert crossval(tmp_path, "--folds=[1]", variants) == 0
    assert [row["head"] for row in told(tmp_path)["systems"]] == ["sure", "wide"]
    assert [row["tests"][0]["head"] for row in told(tmp_path)["systems"]] == ["mean", "attention"]


def test_the_configuration_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crossval", f"--out={tmp_path}", "--model={}", "--data={}"]) == 2
    assert "papsmear crossval -c configs/mil.yaml" in capsys.readouterr().err
