"""What a DINO run says of itself: collapse, brought about as in the paper; a loss that is none; waiting; figures."""

import csv
import json
import math
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from papsmear.errors import InputError
from papsmear.ssl.augment import Picture, Views
from papsmear.ssl.data import TileData
from papsmear.ssl.dino import DINO
from papsmear.ssl.loss import DINOLoss, entropy
from papsmear.ssl.updates import clip_each
from papsmear.ssl.watch import Collapse, Figures, Signs, Watch, feature_std
from papsmear.training import HARMLESS

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in HARMLESS))
PX, BATCH = 32, 6
USUAL = Signs()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """60 tiles of 48 px, of two slides: 10 steps an epoch."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id in ("s1", "s2"):
        low = rng.integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path\ns1,a\ns2,b\n")
    return folder


class Plain(Views):
    """In place of the augmentation: the corner of the tile twice, after some waiting."""

    seconds = 0.0

    def __call__(self, picture: Picture, rng: np.random.Generator) -> NDArray[np.uint8]:
        time.sleep(self.seconds)
        return np.stack([picture[:PX, :PX]] * 2)


class Slow(Plain):
    """10 ms a tile."""

    seconds = 0.01


def make_data(cohort: Path, views: Views | None = None) -> TileData:
    data = TileData(cohort / "shards", cohort / "slides.csv", batch_size=BATCH, workers=0, crop_px=PX)
    data.views = views or data.views
    return data


def train(
    folder: Path,
    cohort: Path,
    epochs: int,
    *callbacks: Callback,
    views: Views | None = None,
    signs: Signs = USUAL,
    logger: Any = False,
    go_on: bool = False,
    **changes: Any,
) -> DINO:
    class Watched(DINO):
        def configure_callbacks(self) -> list[Callback]:
            return [Watch(64, signs)]

    seed_everything(3, verbose=False)
    values = {"architecture": "test_resnet", "input_px": PX, "outputs": 64, "drop_path": 0.0, "warmup_epochs": 1}
    model = (DINO if signs == USUAL else Watched)(**{**values, **changes})
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[*callbacks, last],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model, datamodule=make_data(cohort, views), ckpt_path=folder / "last.ckpt" if go_on else None, weights_only=True
    )
    return model


# Caron et al. 2021, figure 7: a temperature that does not sharpen, and a centre that stays where it is.
WITHOUT_SHARPENING = {"teacher_temperature": (0.5, 0.5), "base_lr": 0.02}
WITHOUT_CENTRING = {"centre_momentum": 1.0, "base_lr": 0.02, "ema_momentum": (0.9, 1.0)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (WITHOUT_SHARPENING, r"teacher output is uniform \(loss = ln K\) since step 0; usual causes: .*temperature"),
        (WITHOUT_CENTRING, r"teacher output is one point \(loss = 0\) since step \d+; usual causes: the centre"),
        ({}, ""),
    ],
    ids=["without sharpening", "without centring", "healthy"],
)
def test_each_kind_of_collapse_is_said_once(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    train(tmp_path, cohort, 7, **changes)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teacher output")]
    assert len(lines) == bool(said)
    assert all(re.match(said, line) for line in lines)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Watch"]
    train(tmp_path, cohort, 8, go_on=True, **changes)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Watch"] == before
    assert "teacher output" not in capsys.readouterr().err, "a run that goes on does not say it again"


def said_of(figures: list[tuple[float, float, float]], signs: Signs) -> list[tuple[int, str]]:
    collapse = Collapse(64, signs)
    seen = [(step, collapse.see(Figures(step, *values))) for step, values in enumerate(figures)]
    return [(step, message) for step, message in seen if message]


def test_an_onset_is_a_number_of_steps_in_a_row_and_its_end_is_said() -> None:
    most = math.log(64)
    healthy, uniform, same = (2.0, 1.0, 0.5), (most, most, 0.5), (2.0, 1.0, 0.01)
    assert not said_of([healthy] * 9, Signs(steps=1))
    assert not said_of([uniform, uniform, healthy] * 5, Signs(steps=3)), "never three in a row"
    assert not said_of([(1.0, 0.0, 0.5)] * 9, Signs(steps=3)), "sharp, but of each image something else"
    found = said_of([healthy] * 4 + [uniform] * 5 + [healthy] * 2 + [same] * 3, Signs(steps=3))
    assert [step for step, _ in found] == [6, 9, 13]
    assert "uniform (loss = ln K) since step 4;" in found[0][1]
    assert found[1][1] == "teacher output is no longer uniform (loss = ln K), from step 9 on"
    assert "one point (feature std = 0) since step 11;" in found[2][1]


class Spoil(Callback):
    """Makes one weight no number before a step, and keeps that step's batch."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.batch: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.batch = batch
            nn.init.constant_(pl_module.student.head.mlp[0].weight, math.nan)


def test_a_loss_that_is_no_number_leaves_the_keys_of_its_batch(cohort: Path, tmp_path: Path) -> None:
    spoil = Spoil(step=13)
    with pytest.raises(InputError, match=r"the loss is nan at step 13, epoch 1; .* listed in nonfinite-step-13\.json"):
        train(tmp_path, cohort, 3, spoil, views=Plain(PX))
    note = json.loads((tmp_path / "nonfinite-step-13.json").read_text())
    assert (note["step"], note["epoch"], note["batch"], note["loss"]) == (13, 1, 3, "nan")
    assert len(note["tiles"]) == BATCH
    for tile, views in zip(note["tiles"], spoil.batch[0], strict=True):
        slide_id = tile["key"].partition("_")[0]
        with tarfile.open(cohort / "shards" / slide_id / tile["shard"]) as tar:
            file = tar.extractfile(f"{tile['key']}.jpg")
            assert file is not None
            picture = simplejpeg.decode_jpeg(file.read())
        np.testing.assert_array_equal(views[0].numpy(), picture[:PX, :PX])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10, "what was finished is kept"
    assert all(value.isfinite().all() for value in last["state_dict"].values())


class Norms(Callback):
    """The norm of the whole gradient before it is clipped, step by step, and what the progress bar shows."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.bar: set[str] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        squares = [float((p.grad**2).sum()) for p in pl_module.student.parameters() if p.grad is not None]
        self.norms.append(math.sqrt(sum(squares)))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.bar = set(trainer.progress_bar_metrics)


def test_every_figure_is_logged_and_shown(cohort: Path, tmp_path: Path) -> None:
    norms = Norms()
    model = train(tmp_path, cohort, 1, norms, logger=CSVLogger(tmp_path, "logs", "0"), clip_norm=0.01)
    with (tmp_path / "logs/0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = """loss kl teacher_entropy feature_std centre_norm gradient_norm teacher_temperature lr images_per_second
        data_wait memory_gib"""
    assert {f"train/{name}" for name in wanted.split()} <= norms.bar
    assert norms.bar <= rows[-1].keys()
    assert [float(row["train/gradient_norm"]) for row in rows] == pytest.approx(norms.norms, rel=1e-4)
    assert float(rows[-1]["train/centre_norm"]) == pytest.approx(float(model.loss.centre.norm()), rel=1e-4)
    assert 0 < float(rows[-1]["train/data_wait"]) < 1
    assert 0.05 < float(rows[-1]["train/memory_gib"]) < 64
    assert float(rows[-1]["train/images_per_second"]) > 1
    for row in rows:
        loss, kl, entropy = (float(row[f"train/{name}"]) for name in ("loss", "kl", "teacher_entropy"))
        assert kl == pytest.approx(loss - entropy, abs=1e-4)


def test_the_loss_is_entropy_plus_kl_divergence() -> None:
    torch.manual_seed(0)
    loss, student, teacher = DINOLoss(16), torch.randn(2, 5, 16), 0.1 * torch.randn(2, 5, 16)
    p = loss.teacher_probabilities(teacher, 0.04)
    log_q = (student / 0.1).log_softmax(-1)
    divergence = sum(F.kl_div(log_q[1 - view], p[view], reduction="batchmean") for view in (0, 1)) / 2
    torch.testing.assert_close(loss(student, p) - entropy(p), divergence)


def test_the_norm_before_clipping_is_given_back() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    torch.testing.assert_close(clip_each([a, b], 1.0), torch.tensor(5.0))


def test_feature_std_of_collapsed_and_of_spread_features() -> None:
    assert float(feature_std(torch.ones(2, 8, 16))) < 1e-6
    assert float(feature_std(torch.randn(2, 512, 64))) == pytest.approx(1, abs=0.05)


def test_the_loader_counts_only_its_own_time(cohort: Path) -> None:
    data = make_data(cohort, Slow(PX))
    data.setup("fit")
    loader, began = data.loader(), time.monotonic()
    for _ in loader:
        time.sleep(0.1)
    assert 60 * 0.01 <= loader.waited_seconds <= time.monotonic() - began - 10 * 0.1


class Work(Callback):
    """Steps that take so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)


@pytest.mark.parametrize(("work", "threshold", "said"), [(0.0, 0.05, 1), (0.3, 0.6, 0)])
def test_waiting_for_tiles_is_said_once_with_advice(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], work: float, threshold: float, said: int
) -> None:
    train(tmp_path, cohort, 1, Work(work), views=Slow(PX), signs=Signs(steps=5, data_wait=threshold))
    error = capsys.readouterr().err
    assert error.count("data_wait: ") == said
    assert error.count("give more --data.workers (now 0 a device") == said
