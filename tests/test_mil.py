"""Attention-MIL by the command line: a planted signal, the exported head, resuming, leaks, input that does not fit."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from papsmear.cli import main
from papsmear.errors import InputError, UsageError
from papsmear.mil.bags import BagCard, read_bag, write_bag, write_encoder_card
from papsmear.mil.heads import HEADS, build_head
from papsmear.mil.metrics import figures
from papsmear.mil.model import load_head
from papsmear.seeds import derive
from papsmear.ssl.card import EncoderCard
from papsmear.tiling.cut import TileSettings

N_SLIDES, N_TILES, WIDTH = 24, 60, 16
CARD = BagCard("random:test_vit", "ab" * 32, TileSettings(area="all", quality=75), 640.0)
ENCODER = EncoderCard(CARD.encoder, "test_vit", 160, (0.5,) * 3, (0.5,) * 3, sha256=CARD.encoder_sha256)
HEADER = "slide_id,path,label,fold"


def rows() -> list[str]:
    """Slides s0, s1, … over folds 0 to 3; a third of each fold is positive."""
    return [f"s{i},s{i}.svs,{int(i // 4 % 3 == 0)},{i % 4}" for i in range(N_SLIDES)]


def write_csv(file: Path, lines: list[str], header: str = HEADER) -> None:
    file.write_text("\n".join([header, *lines]) + "\n")


def write_cohort(folder: Path, width: int = WIDTH) -> Path:
    """Bags of noise where 3 tiles of each positive slide are shifted, with the scale and mean of a real encoder."""
    random = np.random.default_rng(0)
    shift, centre = 5 * np.eye(width)[3], 20 * random.normal(size=width)
    for line in rows():
        slide_id, _, label, _ = line.split(",")
        tiles = random.normal(size=(N_TILES, width))
        tiles[10:13] += int(label) * shift
        xy = np.arange(2 * N_TILES, dtype=np.int32).reshape(-1, 2)
        write_bag(folder / "features" / f"{slide_id}.h5", (0.1 * tiles + centre).astype(np.float16), xy, CARD)
    write_encoder_card(folder / "features", ENCODER)
    write_csv(folder / "slides.csv", rows())
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A cohort that the test may spoil."""
    return write_cohort(tmp_path)


@pytest.fixture(scope="module")
def lightning(root: Path) -> Callable[..., int]:
    """Runs a training command on a cohort with the shipped configuration; `words` come last."""

    def run(command: str, cohort: Path, *words: str) -> int:
        return main(
            [
                command,
                f"-c={root / 'configs' / 'mil.yaml'}",
                f"--trainer.default_root_dir={cohort / 'run'}",
                f"--data.features={cohort / 'features'}",
                f"--data.slides={cohort / 'slides.csv'}",
                "--trainer.accelerator=cpu",
                "--trainer.logger=false",
                *words,
            ]
        )

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, lightning: Callable[..., int]) -> Path:
    """A cohort with a trained run; not to be changed."""
    cohort = write_cohort(tmp_path_factory.mktemp("mil"))
    assert lightning("fit", cohort, "--trainer.max_epochs=12", "--model.lr=1e-3") == 0
    return cohort


def test_a_planted_signal_is_found(
    trained: Path, lightning: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert lightning("test", trained) == 0
    told = json.loads((trained / "run" / "test.json").read_text())
    assert told["auc"] >= 0.9
    assert (told["fold"], told["leak"], told["slides"]) == (0, False, 6)
    with (trained / "run" / "test.csv").open() as file:
        judged = list(csv.DictReader(file))
    assert {row["slide_id"]: (row["label"], row["fold"]) for row in judged} == {
        line.split(",")[0]: (line.split(",")[2], "0") for line in rows() if line.endswith(",0")
    }
    again = figures(
        np.array([int(row["label"]) for row in judged]),
        np.array([float(row["probability"]) for row in judged]),
        told["threshold"],
    )
    assert (again.auc, again.sensitivity, again.specificity) == (told["auc"], told["sensitivity"], told["specificity"])
    said = capsys.readouterr().out
    assert "AUC" in said
    assert "LEAK" not in said


def test_the_tiles_of_the_signal_have_high_scores(trained: Path) -> None:
    head = load_head(trained / "run")
    found = []
    for slide_id in ("s0", "s12"):  # the positive slides of the test fold
        _, score = head.judge(read_bag(trained / "features" / f"{slide_id}.h5").features)
        assert score.sum() == pytest.approx(1, abs=1e-5)
        found += [tile in np.argsort(score)[-N_TILES // 6 :] for tile in (10, 11, 12)]
    assert np.mean(found) >= 0.8  # by chance: 1 / 6


def test_the_exported_head_is_that_of_the_best_checkpoint(trained: Path) -> None:
    stored = load_head(trained / "run")
    checkpoint = torch.load(trained / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    head = build_head(stored.card.head, stored.card.width, stored.card.head_args).eval()
    head.load_state_dict(
        {
            key.removeprefix(
                "head.",
            ): v
            for key, v in checkpoint["state_dict"].items()
        }
    )
    for slide in ("s0", "s5"):
        features = read_bag(trained / "features" / f"{slide}.h5").features
        with torch.inference_mode():
            logit, score = head(torch.from_numpy(features))
        probability, exported_score = stored.judge(features)
        log_odds = logit.double() / stored.card.temperature + stored.card.prior_log_odds
        assert probability == float(log_odds.sigmoid())
        np.testing.assert_array_equal(exported_score, score.numpy())
    assert stored.card.threshold == checkpoint["mil"]["threshold"]
    assert vars(stored.card.calibration) == checkpoint["mil"]["calibration"]


def test_the_card_says_what_the_head_was_trained_on(trained: Path) -> None:
    card = load_head(trained / "run").card
    fold_of = {line.split(",")[0]: line.split(",")[3] for line in rows()}
    assert {fold_of[slide] for slide in card.train_slides} == {"2", "3"}
    assert {fold_of[slide] for slide in card.validation_slides} == {"1"}
    assert (card.head, card.width, card.fold) == ("gated_attention", WIDTH, 0)
    assert (card.encoder, card.encoder_sha256) == (CARD.encoder, CARD.encoder_sha256)
    assert card.tiles == CARD.tiles
    assert 0 < card.threshold < 1
    assert card.scope is not None
    assert (card.scope.tiles, card.scope.focus) == (N_TILES, None)  # these bags do not tell their sharpness
    assert 0 < card.scope.distance < 0.5


def test_test_and_diagnosis_give_a_slide_the_same_probability(trained: Path, lightning: Callable[..., int]) -> None:
    assert lightning("test", trained) == 0
    head = load_head(trained / "run")
    with (trained / "run" / "test.csv").open() as file:
        for row in csv.DictReader(file):
            probability, _ = head.judge(read_bag(trained / "features" / f"{row['slide_id']}.h5").features)
            assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)


def test_predict_takes_unlabelled_slides_too(trained: Path, tmp_path: Path, lightning: Callable[..., int]) -> None:
    write_csv(tmp_path / "new.csv", ["s0,a,", "s1,b,1", "s2,c,0"], "slide_id,path,label")
    assert lightning("predict", trained, f"--data.slides={tmp_path / 'new.csv'}") == 0
    with (trained / "run" / "predictions.csv").open() as file:
        found = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert {slide: row["seen_in"] for slide, row in found.items()} == {"s0": "", "s1": "validation", "s2": "train"}
    assert found["s0"]["positive"] == str(
        int(float(found["s0"]["probability"]) >= load_head(trained / "run").card.threshold)
    )


def test_validate_and_the_baseline_head(cohort: Path, lightning: Callable[..., int]) -> None:
    assert lightning("fit", cohort, "--trainer.max_epochs=1", "--model.head=mean") == 0
    assert lightning("validate", cohort, "--model.head=mean") == 0
    assert load_head(cohort / "run").card.head == "mean"


@pytest.mark.parametrize("name", HEADS)
def test_a_word_of_the_configuration_chooses_the_head(name: str, cohort: Path, lightning: Callable[..., int]) -> None:
    assert lightning("fit", cohort, "--trainer.max_epochs=1", f"--model.head={name}") == 0
    head = load_head(cohort / "run")
    assert head.card.head == name
    probability, score = head.judge(read_bag(cohort / "features" / "s0.h5").features)
    assert 0 < probability < 1
    assert score.shape == (N_TILES,)
    assert np.isfinite(score).all()


def test_a_head_is_trained_by_the_loss_of_its_own(cohort: Path, lightning: Callable[..., int]) -> None:
    """The clusterings of CLAM have no part in its logit: only its own loss moves them."""
    assert lightning("fit", cohort, "--trainer.max_epochs=1", "--model.head=clam_sb") == 0
    torch.manual_seed(derive(0, "head"))
    before = build_head("clam_sb", WIDTH, {}).state_dict()
    after = load_head(cohort / "run").head.state_dict()
    for label in (0, 1):
        key = f"head.cluster.{label}.weight"
        assert not torch.equal(before[key], after[key])


def test_a_run_that_was_stopped_ends_with_the_same_weights(cohort: Path, lightning: Callable[..., int]) -> None:
    once = f"--trainer.default_root_dir={cohort / 'once'}"
    assert lightning("fit", cohort, "--trainer.max_epochs=4", once) == 0
    assert lightning("fit", cohort, "--trainer.max_epochs=2") == 0
    assert lightning("fit", cohort, "--trainer.max_epochs=4") == 0
    for name in ("head.safetensors", "checkpoints/last.ckpt"):
        assert (cohort / "once" / name).is_file()
    a, b = (torch.load(cohort / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("once", "run"))
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    assert (cohort / "once" / "head.safetensors").read_bytes() == (cohort / "run" / "head.safetensors").read_bytes()


def test_unlabelled_slides_are_left_out_and_named(
    cohort: Path, lightning: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(cohort / "slides.csv", [*rows(), "extra,extra.svs,,"])
    assert lightning("fit", cohort, "--trainer.max_epochs=1") == 0
    assert "without a label are left out: extra" in capsys.readouterr().err
    assert "extra" not in load_head(cohort / "run").card.train_slides


# Leaks


def test_an_encoder_that_has_seen_test_slides_is_refused(
    cohort: Path, lightning: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_encoder_card(cohort / "features", replace(ENCODER, train_slides=("s1", "s4", "s8")))
    assert lightning("fit", cohort) == 2
    assert "s4, s8" in (said := capsys.readouterr().err)
    assert "s1" not in said
    assert not (cohort / "run").exists()
    assert lightning("fit", cohort, "--trainer.max_epochs=1", "--data.allow_leak=true") == 0
    assert lightning("test", cohort) == 2
    capsys.readouterr()
    assert lightning("test", cohort, "--data.allow_leak=true") == 0
    said = capsys.readouterr().out
    assert "LEAK test on fold 0" in said
    assert json.loads((cohort / "run" / "test.json").read_text())["leak"] is True


def test_a_head_is_not_tested_on_slides_that_it_was_trained_on(
    trained: Path, lightning: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert lightning("test", trained, "--data.fold=2") == 2
    assert "the head was trained on 6 of the slides to judge: s10, s14, s18, s2, s22, s6" in capsys.readouterr().err
    assert lightning("test", trained, "--data.fold=1") == 2  # it chose the epoch and the threshold


# What does not fit together: one line, exit status 2 (1 for a broken input), and nothing begun


def drop_bags(cohort: Path) -> None:
    for slide in ("s3", "s7"):
        (cohort / "features" / f"{slide}.h5").unlink()


def drop_labels(cohort: Path) -> None:
    write_csv(cohort / "slides.csv", [f"s{i},s{i}.svs" for i in range(N_SLIDES)], "slide_id,path")


def drop_folds(cohort: Path) -> None:
    write_csv(cohort / "slides.csv", [line[:-2] for line in rows()], "slide_id,path,label")


def drop_a_fold_value(cohort: Path) -> None:
    write_csv(cohort / "slides.csv", [rows()[0][:-1], *rows()[1:]])


def drop_positives(cohort: Path) -> None:
    write_csv(cohort / "slides.csv", [line.replace(",1,1", ",0,1") for line in rows()])


def drop_negatives(cohort: Path) -> None:
    write_csv(cohort / "slides.csv", [line.replace(",0,0", ",1,0") for line in rows()])


def two_folds(cohort: Path) -> None:
    write_csv(cohort / "slides.csv", [line[:-1] + str(int(line[-1]) % 2) for line in rows()])


def another_width(cohort: Path) -> None:
    with h5py.File(cohort / "features" / "s4.h5", "r+") as h5:
        del h5["features"]
        h5["features"] = np.zeros((N_TILES, 8), np.float16)


def empty_bag(cohort: Path) -> None:
    write_bag(cohort / "features" / "s4.h5", np.zeros((0, WIDTH), np.float16), np.zeros((0, 2), np.int32), CARD)


def other_tiles(cohort: Path) -> None:
    bag = read_bag(cohort / "features" / "s4.h5")
    card = replace(CARD, tiles=TileSettings(area="disc", quality=75))
    write_bag(cohort / "features" / "s4.h5", bag.features, bag.xy_level0, card)


def nan_bag(cohort: Path) -> None:
    with h5py.File(cohort / "features" / "s2.h5", "r+") as h5:
        h5["features"][3, 2] = np.nan


def cut_bag(cohort: Path) -> None:
    file = cohort / "features" / "s2.h5"
    file.write_bytes(file.read_bytes()[:900])


def nothing(cohort: Path) -> None:
    """Only the options are wrong."""


@pytest.mark.parametrize(
    ("spoil", "words", "status", "said"),
    [
        (drop_bags, [], 2, "features: no bag for 2 slides of the csv: s3, s7"),
        (drop_labels, [], 2, "no slide has a label"),
        (drop_folds, [], 2, "the slides have no fold; add the column with papsmear split"),
        (drop_a_fold_value, [], 2, "no fold for s0"),
        (drop_positives, [], 2, "fold 1 (validation) has no positive slide among 6"),
        (drop_negatives, [], 2, "fold 0 (test) has no negative slide among 6"),
        (two_folds, [], 2, "2 folds; training, validation and test need 3"),
        (another_width, [], 2, "bags of differing width: 16 features in"),
        (other_tiles, [], 2, "area all, JPEG quality 75, encoder abababababab in 23 bags, such as "),
        (other_tiles, [], 2, "area disc, JPEG quality 75, encoder abababababab in 1 bags, such as s4; tile and embed"),
        (empty_bag, [], 1, "slide s4 has an empty bag"),
        (nan_bag, [], 1, "slide s2 has features that are not finite"),
        (cut_bag, [], 1, "s2.h5: not a whole HDF5 file"),
        (nothing, ["--data.fold=7"], 2, "data.fold=7"),
        (nothing, ["--data.features=nowhere"], 2, "nowhere: there is no folder of bags"),
        (nothing, ["--data.slides=nowhere.csv"], 2, "nowhere.csv: cannot read"),
        (nothing, ["--data.batch_size=0"], 2, "data.batch_size=0"),
        (nothing, ["--model.head=maximum"], 2, "head 'maximum': there is no such head"),
        (nothing, ["--model.head_args={wide: 3}"], 2, "head_args {'wide': 3} do not fit"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_before_anything_begins(
    cohort: Path,
    lightning: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    words: list[str],
    status: int,
    said: str,
) -> None:
    spoil(cohort)
    assert lightning("fit", cohort, "--trainer.max_epochs=1", *words) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (cohort / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("card", "width", "said"),
    [
        (replace(CARD, encoder_sha256="cd" * 32), 8, "an encoder of another width than the bags"),
        (replace(CARD, encoder="other", encoder_sha256="cd" * 32), WIDTH, "bags of encoder other"),
    ],
)
def test_bags_of_another_encoder_are_refused(
    trained: Path,
    cohort: Path,
    lightning: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    card: BagCard,
    width: int,
    said: str,
) -> None:
    for file in (cohort / "features").glob("*.h5"):
        bag = read_bag(file)
        write_bag(file, bag.features[:, :width], bag.xy_level0, card)
    assert lightning("test", cohort, f"--trainer.default_root_dir={trained / 'run'}") == 2
    assert said in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_slides(
    cohort: Path, lightning: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert lightning("fit", cohort, "--trainer.max_epochs=1") == 0
    write_csv(cohort / "slides.csv", rows()[:-1])
    assert lightning("fit", cohort, "--trainer.max_epochs=2") == 2
    assert "other slides or folds than this run" in capsys.readouterr().err


def test_a_head_that_is_missing_or_cut_short(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no trained head"):
        load_head(tmp_path)
    whole = (trained / "run" / "head.safetensors").read_bytes()
    for cut in (whole[: len(whole) // 2], b"", b"{}"):
        (tmp_path / "head.safetensors").write_bytes(cut)
        with pytest.raises(InputError, match=r"head\.safetensors: not a whole trained head"):
            load_head(tmp_path)
