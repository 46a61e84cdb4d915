"""Trainings of three steps an epoch against a plain script of the paper's pseudo-code, in double precision."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F

from papsmear.ssl.data import TileData
from papsmear.ssl.dino import DINO
from papsmear.training import HARMLESS

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in HARMLESS))
PX, BATCH, K, EPOCHS = 64, 4, 24, 2
MEAN, STD = (255 * torch.tensor(values) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    """13 tiles of two slides: three batches of 4 an epoch."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id, n_tiles in (("s1", 6), ("s2", 7)):
        low = rng.integers(0, 256, (n_tiles, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path\ns1,a\ns2,b\n")
    return folder


def make_data(cohort: Path, local_crops: int) -> TileData:
    return TileData(
        cohort / "shards", cohort / "slides.csv", None, BATCH, 0, PX, local_crops=local_crops, local_crop_px=32
    )


def make_model(**changes: Any) -> DINO:
    seed_everything(3, verbose=False)
    values: dict[str, Any] = {"base_lr": 0.02, "ema_momentum": (0.9, 1.0), "clip_norm": 0.05, "warmup_epochs": 1}
    return DINO(**{**values, "input_px": PX, "outputs": K, "drop_path": 0.0, **changes})


def fit(model: LightningModule, data: TileData, folder: Path, **options: Any) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": EPOCHS, "precision": "64-true", "accelerator": "cpu", "enable_model_summary": False}
    Trainer(default_root_dir=folder, devices=1, **{**quiet, **settings, **options}).fit(model, datamodule=data)


def cross_entropy(t: Tensor, s: Tensor, centre: Tensor) -> Tensor:
    """H of algorithm 1, with student_temperature 0.1 and teacher_temperature 0.04."""
    return -(F.softmax((t - centre) / 0.04, -1) * F.log_softmax(s / 0.1, -1)).sum(-1)


def plain_loss(model: DINO, batch: list[Tensor], centre: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper: the loss, and the centre after it."""
    # (views · B, 3, H, W) for each size, view after view
    x = [((size.double() - MEAN) / STD).permute(1, 0, 4, 2, 3).flatten(0, 1) for size in batch]
    with torch.no_grad():
        t = model.teacher.head(model.teacher.backbone(x[0])).split(BATCH)
    s = [view for size in x for view in model.student.head(model.student.backbone(size)).split(BATCH)]
    terms = [cross_entropy(t[i], s[j], centre).mean() for i in range(len(t)) for j in range(len(s)) if i != j]
    return sum(terms, torch.zeros(())) / len(terms), 0.9 * centre + 0.1 * torch.cat(t).mean(0)


def plain_training(model: DINO, batches: list[list[list[Tensor]]], optimizer: str) -> Tensor:
    """The repository's training loop in the simplest words; gives the centre, and leaves the weights in the model."""
    steps, warmup, step = sum(map(len, batches)), len(batches[0]), 0
    centre = torch.zeros(K).double()
    state: dict[str, list[Tensor]] = {}
    for epoch, of_epoch in enumerate(batches):
        for batch in of_epoch:
            peak = 0.02 * BATCH / 256
            falling = 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
            lr = peak * step / (warmup - 1) if step < warmup else falling
            decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / steps))
            momentum = 1 + 0.5 * (0.9 - 1) * (1 + math.cos(math.pi * step / steps))
            model.student.zero_grad()
            loss, centre = plain_loss(model, batch, centre)
            loss.backward()
            with torch.no_grad():
                for name, p in model.student.named_parameters():
                    if p.grad is None or (epoch < 1 and "last_layer" in name):
                        continue
                    g = p.grad * min(1.0, 0.05 / (float(p.grad.norm()) + 1e-6))
                    wd = 0.0 if p.ndim == 1 else decay
                    if optimizer == "sgd":
                        g = g + wd * p
                        state[name] = [0.9 * state[name][0] + g] if name in state else [g]
                        p -= lr * state[name][0]
                    else:
                        m, v, n = state.get(name, [torch.zeros(()).double()] * 3)
                        state[name] = [0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, n + 1]
                        m, v, n = state[name]
                        p *= 1 - lr * wd
                        p -= lr * (m / (1 - 0.9**n)) / ((v / (1 - 0.999**n)).sqrt() + 1e-8)
                for ours, theirs in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                    ours.copy_(momentum * ours + (1 - momentum) * theirs)
            step += 1
    return centre


@pytest.mark.parametrize(
    ("architecture", "optimizer", "local_crops"),
    [
        ("test_resnet", "adamw", 3),
        ("test_resnet", "sgd", 0),
        ("test_vit", "sgd", 3),
    ],
    ids=["resnet with local crops", "resnet", "vit with local crops"],
)
def test_training_is_the_papers(
    cohort: Path, tmp_path: Path, architecture: str, optimizer: str, local_crops: int
) -> None:
    options = {"architecture": architecture, "optimizer": optimizer}
    model, start = make_model(**options), make_model(**options).double()
    untrained = {name: value.clone() for name, value in start.student.state_dict().items()}
    data = make_data(cohort, local_crops)
    fit(model, data, tmp_path)

    batches, loader = [], data.loader()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    centre = plain_training(start, batches, optimizer)

    exact = {"rtol": 1e-8, "atol": 1e-11}
    for name, value in start.state_dict().items():
        if name.startswith(("student", "teacher")):
            torch.testing.assert_close(model.state_dict()[name], value, **exact, msg=name)
    torch.testing.assert_close(model.loss.centre, centre, **exact)
    moved = [name for name, value in start.student.named_parameters() if not torch.equal(value, untrained[name])]
    assert {"head.mlp.0.bias", "head.last_layer.direction"} <= set(moved)
