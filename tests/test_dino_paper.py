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
from papsmear.ssl.ibot import hide_patches
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
        cohort / "shards", cohort / "slides.csv", batch_size=BATCH, workers=0, crop_px=PX,
        local_crops=local_crops, local_crop_px=32,
    )  # fmt: skip


def make_model(**changes: Any) -> DINO:
    seed_everything(3, verbose=False)
    values: dict[str, Any] = {"base_lr": 0.02, "ema_momentum": (0.9, 1.0), "clip_norm": 0.05, "warmup_epochs": 1}
    return DINO(**{**values, "input_px": PX, "outputs": K, "drop_path": 0.0, **changes})


def fit(model: LightningModule, data: TileData, folder: Path, **options: Any) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": EPOCHS, "precision": "64-true", "accelerator": "cpu", "enable_model_summary": False}
    Trainer(default_root_dir=folder, devices=1, **{**quiet, **settings, **options}).fit(model, datamodule=data)


def tokens_of(student: Any, x: Tensor, hidden: Tensor) -> Tensor:
    """The ViT's tokens where the patches of `hidden` (N, rows, columns) are the mask token, layer by layer."""
    vit = student.backbone
    embedded = vit.patch_embed(x).clone()
    for place in hidden.nonzero():
        embedded[tuple(place)] = student.mask_token[0]
    tokens: Tensor = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(embedded))))
    return tokens


def cross_entropy(t: Tensor, s: Tensor, centre: Tensor) -> Tensor:
    """H of algorithm 1, with student_temperature 0.1 and teacher_temperature 0.04."""
    return -(F.softmax((t - centre) / 0.04, -1) * F.log_softmax(s / 0.1, -1)).sum(-1)


def plain_loss(model: DINO, batch: list[Tensor], place: tuple[int, int], centres: list[Tensor]) -> Tensor:
    """Algorithm 1 of the paper, of iBOT and of KoLeo where they are on; the centres of images and patches move."""
    student, teacher = model.student, model.teacher
    # (views · B, 3, H, W) for each size, view after view
    x = [((size.double() - MEAN) / STD).permute(1, 0, 4, 2, 3).flatten(0, 1) for size in batch]
    with torch.no_grad():
        t = teacher.head(teacher.backbone(x[0])).split(BATCH)
    ibot, koleo = model.hparams["ibot_weight"], model.hparams["koleo_weight"]
    if ibot:
        side = PX // 16
        hidden = torch.zeros(2 * BATCH * side * side, dtype=torch.bool)
        hidden[hide_patches((side, side), range(BATCH), BATCH, 0, *place).index] = True
        hidden = hidden.view(2 * BATCH, side, side)
        seen = tokens_of(student, x[0], hidden)
        features = [seen[:, 0], *(student.backbone(small) for small in x[1:])]
    else:
        features = [student.backbone(size) for size in x]
    s = [view for of_size in features for view in student.head(of_size).split(BATCH)]
    terms = [cross_entropy(t[i], s[j], centres[0]).mean() for i in range(len(t)) for j in range(len(s)) if i != j]
    loss = sum(terms, torch.zeros(())) / len(terms)
    centres[0] = 0.9 * centres[0] + 0.1 * torch.cat(t).mean(0)
    if ibot:
        with torch.no_grad():
            truth = teacher.head(teacher.backbone.forward_features(x[0])[:, 1:])
        guess, masks = student.head(seen[:, 1:]), hidden.flatten(1)
        each = cross_entropy(truth, guess, centres[1])
        means = [each[n][masks[n]].mean() if masks[n].any() else torch.zeros(()) for n in range(2 * BATCH)]
        loss = loss + ibot * sum(means, torch.zeros(())) / (2 * BATCH)
        centres[1] = 0.9 * centres[1] + 0.1 * truth[masks].mean(0)
    if koleo:
        unit = F.normalize(features[0][:BATCH], dim=-1)
        apart = [min((unit[a] - unit[b] + 1e-8).norm() for b in range(BATCH) if b != a) for a in range(BATCH)]
        loss = loss - koleo * (torch.stack(apart) + 1e-8).log().mean()
    return loss


def plain_training(model: DINO, batches: list[list[list[Tensor]]], optimizer: str) -> list[Tensor]:
    """The repository's training loop in the simplest words; gives the centres, and leaves the weights in the model."""
    steps, warmup, step = sum(map(len, batches)), len(batches[0]), 0
    centres = [torch.zeros(K).double(), torch.zeros(K).double()]
    state: dict[str, list[Tensor]] = {}
    for epoch, of_epoch in enumerate(batches):
        for number, batch in enumerate(of_epoch):
            peak = 0.02 * BATCH / 256
            falling = 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
            lr = peak * step / (warmup - 1) if step < warmup else falling
            decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / steps))
            momentum = 1 + 0.5 * (0.9 - 1) * (1 + math.cos(math.pi * step / steps))
            model.student.zero_grad()
            plain_loss(model, batch, (epoch, number), centres).backward()
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
    return centres


@pytest.mark.parametrize(
    ("architecture", "optimizer", "local_crops", "changes"),
    [
        ("test_resnet", "adamw", 3, {}),
        ("test_resnet", "sgd", 0, {}),
        ("test_vit", "adamw", 2, {"ibot_weight": 0.7, "koleo_weight": 0.1}),
        ("test_vit", "sgd", 3, {}),
    ],
    ids=["resnet with local crops", "resnet", "vit with ibot and koleo", "vit with local crops"],
)
def test_training_is_the_papers(
    cohort: Path, tmp_path: Path, architecture: str, optimizer: str, local_crops: int, changes: dict[str, Any]
) -> None:
    options = {"architecture": architecture, "optimizer": optimizer, **changes}
    model, start = make_model(**options), make_model(**options).double()
    untrained = {name: value.clone() for name, value in start.student.state_dict().items()}
    data = make_data(cohort, local_crops)
    fit(model, data, tmp_path)

    batches, loader = [], data.loader()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    centre, patch_centre = plain_training(start, batches, optimizer)

    exact = {"rtol": 1e-8, "atol": 1e-11}
    for name, value in start.state_dict().items():
        if name.startswith(("student", "teacher")):
            torch.testing.assert_close(model.state_dict()[name], value, **exact, msg=name)
    torch.testing.assert_close(model.loss.centre, centre, **exact)
    if model.ibot:
        torch.testing.assert_close(model.ibot.centre, patch_centre, **exact)
    moved = [name for name, value in start.student.named_parameters() if not torch.equal(value, untrained[name])]
    assert {"head.mlp.0.bias", "head.last_layer.direction"} <= set(moved)
    assert ("mask_token" in moved) == bool(model.ibot)
