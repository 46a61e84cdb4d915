"""k-NN while DINO trains: right figures, the best kept, and a training that does not notice."""

import csv
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.probes.callback import KnnProbe
from papsmear.probes.datasets import read_cells
from papsmear.probes.splits import grouped_splits, source_pictures
from papsmear.ssl.data import TileData
from papsmear.ssl.dino import DINO
from papsmear.ssl.encoder import embed_images, load_encoder
from papsmear.training import HARMLESS

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in HARMLESS))
PX, K = 32, 3
CLASSES = ("carcinoma_in_situ", "light_dysplastic", "normal_columnar", "normal_superficiel")
CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs" / "ssl").glob("*.yaml"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """Tiles of two slides, and a set of four classes whose colours overlap: five pictures of two cells each."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id in ("s1", "s2"):
        low = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path\ns1,a\ns2,b\n")
    for label, name in enumerate(CLASSES):
        (folder / "herlev" / name).mkdir(parents=True)
        for number in range(10):
            low = rng.integers(0, 180, (6, 6, 3)) + 20 * label
            picture = 1000 * label + number // 2
            cell = Image.fromarray(low.astype(np.uint8)).resize((PX, PX))
            cell.save(folder / "herlev" / name / f"{picture}-{picture}-{number:03d}.BMP")
    return folder


class Every(Callback):
    """Keeps the teacher of each epoch, and of each process the figure that was logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert all(module.training for module in pl_module.modules())
        figure = float(trainer.callback_metrics["val/knn_f1"])
        (self.folder / f"rank{trainer.global_rank}-epoch{trainer.current_epoch}").write_text(repr(figure))


def fit(
    folder: Path,
    cohort: Path,
    epochs: int,
    *callbacks: Callback,
    go_on: bool = False,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> DINO:
    seed_everything(3, verbose=False)
    told = {"architecture": "test_vit", "drop_path": 0.3, "warmup_epochs": 1, "base_lr": 0.05, **(changes or {})}
    model = DINO(input_px=PX, outputs=24, **told)
    last = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(folder, "logs"),
        log_every_n_steps=1,
        callbacks=[*callbacks, last],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )
    data = TileData(cohort / "shards", cohort / "slides.csv", batch_size=6, workers=0, crop_px=PX)
    ckpt = folder / "checkpoints/last.ckpt" if go_on else None
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return model


def make_probe(cohort: Path, every_n_epochs: int = 1) -> KnnProbe:
    return KnnProbe("herlev", cohort / "herlev", every_n_epochs, K)


def logged(folder: Path) -> dict[int, float]:
    """The figure by its epoch, counted from 1."""
    lines = [file.read_text().splitlines() for file in folder.glob("logs/*/metrics.csv")]
    rows = [row for of_file in lines for row in csv.DictReader(of_file)]
    return {int(row["epoch"]) + 1: float(row["val/knn_f1"]) for row in rows if row.get("val/knn_f1")}


def plain_f1(encoder: Path, cohort: Path) -> float:
    """scikit-learn's own neighbours, with the official weights."""
    cells = read_cells("herlev", cohort / "herlev")
    features = embed_images(load_encoder(str(encoder), "cpu"), cells.images)
    scores = []
    for train, test in grouped_splits(cells.labels, source_pictures(cells), 4, 0):
        knn = KNeighborsClassifier(K, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        predicted = knn.fit(features[train], cells.labels[train]).predict(features[test])
        scores.append(f1_score(cells.labels[test], predicted, average="weighted", zero_division=0))
    return float(np.mean(scores))


class Copies(Callback):
    """Keeps the encoder of each epoch, which lies in the run's folder when the next one begins."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        file = Path(trainer.default_root_dir) / "encoder.safetensors"
        if file.exists():
            file.with_name(f"encoder-{trainer.current_epoch}.safetensors").write_bytes(file.read_bytes())


def test_the_figures_are_right_and_the_best_is_kept(cohort: Path, tmp_path: Path) -> None:
    probe = make_probe(cohort)
    fit(tmp_path, cohort, 6, probe, Copies(), Every(tmp_path))
    (tmp_path / "encoder.safetensors").rename(tmp_path / "encoder-6.safetensors")
    wanted = {epoch: plain_f1(tmp_path / f"encoder-{epoch}.safetensors", cohort) for epoch in range(1, 7)}
    assert logged(tmp_path) == pytest.approx(wanted, abs=1e-6)
    assert len(set(wanted.values())) > 2, "epochs that differ"
    best = max(wanted, key=lambda epoch: wanted[epoch])
    assert (probe.best_epoch, probe.best) == (best, pytest.approx(wanted[best]))
    assert best < 6, "the best is not the last"
    kept = tmp_path / "encoder-best-knn.safetensors"
    assert kept.read_bytes() == (tmp_path / f"encoder-{best}.safetensors").read_bytes()
    checkpoint = torch.load(tmp_path / "checkpoints/best-knn.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["callbacks"]["KnnProbe"]["best_epoch"]) == (best - 1, best)
    weights = load_encoder(str(kept), "cpu").network.state_dict()
    assert all(torch.equal(checkpoint["state_dict"][f"teacher.backbone.{k}"], value) for k, value in weights.items())
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 5


def test_the_training_does_not_notice(cohort: Path, tmp_path: Path) -> None:
    watched = fit(tmp_path / "watched", cohort, 3, make_probe(cohort, 2)).state_dict()
    alone = fit(tmp_path / "alone", cohort, 3).state_dict()
    assert all(torch.equal(value, watched[name]) for name, value in alone.items())
    assert sorted(logged(tmp_path / "watched")) == [2, 3], "every second epoch, and the last"


def test_nor_does_a_compiled_training_whose_batch_statistics_an_evaluation_would_move(
    cohort: Path, tmp_path: Path
) -> None:
    resnet = {"architecture": "test_resnet", "drop_path": 0.0}
    with torch.compiler.set_stance("force_eager"):
        watched = fit(tmp_path / "watched", cohort, 2, make_probe(cohort), changes={**resnet, "compile": True})
    alone = fit(tmp_path / "alone", cohort, 2, changes=resnet).state_dict()
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in alone.items())
    assert logged(tmp_path / "watched")[2] == pytest.approx(plain_f1(tmp_path / "watched/encoder.safetensors", cohort))


class StopAfter(Callback):
    """Ends a run after so many epochs, whose schedules are for more."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def test_a_run_that_goes_on_remembers_the_best(cohort: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, cohort, 4, probe := make_probe(cohort))
    assert probe.best_epoch < 4, "the best lies before the interruption"
    fit(parts, cohort, 4, make_probe(cohort), StopAfter(3))
    fit(parts, cohort, 4, resumed := make_probe(cohort), go_on=True)
    assert (resumed.best, resumed.best_epoch) == (probe.best, probe.best_epoch)
    encoders = [(run / "encoder-best-knn.safetensors").read_bytes() for run in (whole, parts)]
    assert encoders[0] == encoders[1]


def test_two_processes_agree(cohort: Path, tmp_path: Path) -> None:
    """Only the first has the cells; both log its figure, and save at the same epochs, or one would wait for ever."""
    two = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    fit(tmp_path, cohort, 2, make_probe(cohort), Every(tmp_path), devices=2, strategy=two)
    figures = {file.name: float(file.read_text()) for file in tmp_path.glob("rank*")}
    assert figures == pytest.approx({f"rank{r}-epoch{e}": logged(tmp_path)[e + 1] for r in (0, 1) for e in (0, 1)})
    assert figures["rank1-epoch1"] == pytest.approx(plain_f1(tmp_path / "encoder.safetensors", cohort))
    assert (tmp_path / "checkpoints/best-knn.ckpt").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 31}, r"KnnProbe: k is 31, more than the 30 training cells of .*herlev"),
        ({"k": 0}, "KnnProbe: k is 0; give 1 or more"),
        ({"every_n_epochs": 0}, "KnnProbe: every_n_epochs is 0"),
        ({"folder": Path("/nowhere")}, "/nowhere: no such folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(cohort: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fit(tmp_path, cohort, 1, KnnProbe(**{"cells": "herlev", "folder": cohort / "herlev", "k": K} | changes))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_block_of_the_configurations_is_right(file: Path) -> None:
    block = re.search(r"^  # callbacks:\n(?:  # .*\n)+", file.read_text(), re.MULTILINE)
    assert block is not None
    (callback,) = yaml.safe_load(block[0].replace("  # ", "  "))["callbacks"]
    assert callback["class_path"] == f"{KnnProbe.__module__}.{KnnProbe.__name__}"
    KnnProbe(**callback["init_args"])


def test_by_the_command_line(cohort: Path, tmp_path: Path) -> None:
    words = f"""fit -c {CONFIGS[0].parent}/tiny.yaml --data.shards={cohort}/shards --data.slides={cohort}/slides.csv
        --data.batch_size=6 --data.workers=0 --data.crop_px={PX} --model.input_px={PX} --model.architecture=test_resnet
        --model.outputs=16 --trainer.max_epochs=1 --trainer.logger=false --trainer.default_root_dir={tmp_path}/run
        --trainer.callbacks+=papsmear.probes.callback.KnnProbe --trainer.callbacks.cells=herlev
        --trainer.callbacks.folder={cohort}/herlev --trainer.callbacks.k=3"""
    assert main(words.split()) == 0
    kept = {file.name for file in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {"last.ckpt", "best-knn.ckpt"}
    assert (tmp_path / "run/encoder-best-knn.safetensors").is_file()
