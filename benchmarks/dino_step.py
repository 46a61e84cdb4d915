"""A training step of DINO, images/s: ours in `lightning fit`, a bare loop of the same arithmetic, the official step.

    OMP_NUM_THREADS=1 python benchmarks/dino_step.py --architecture vit_small_patch16_224
    python benchmarks/dino_step.py --device cuda --batch 192 --compile --shards shards --slides slides.csv

The official step is that of the DINO repository (Caron et al. 2021) in fp32. All three train from the same batch of
uint8 views, so loading is not counted; with --shards a fourth row trains from shards, and data_wait is shown. The limit
is what the device is said to do a second (--tflops) by the floating-point operations of a step. On a CPU the time is
that of the process, so that a busy machine favours none; the ways take turns.
"""

import argparse
import copy
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode

from papsmear.memory import keep_freed_memory
from papsmear.ssl.data import TileData
from papsmear.ssl.dino import DINO
from papsmear.ssl.tiles import Shard
from papsmear.ssl.updates import clip_each, decay_groups, make_optimizer, move_average


class Official(nn.Module):
    """Backbone and DINOHead of the repository; `weight_norm` included."""

    def __init__(self, architecture: str, drop_path: float, outputs: int) -> None:
        super().__init__()
        options = {"drop_path_rate": drop_path} if drop_path else {}
        self.backbone = timm.create_model(architecture, num_classes=0, **options)
        width = self.backbone.num_features
        self.mlp = nn.Sequential(
            nn.Linear(width, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(256, outputs, bias=False))
        self.last.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (N, K) of images (N, 3, H, W)."""
        outputs: Tensor = self.last(F.normalize(self.mlp(self.backbone(images)), dim=-1))
        return outputs


class OfficialStep:
    """train_one_epoch of the repository, without its logging."""

    def __init__(self, asked: argparse.Namespace) -> None:
        vit = "vit" in asked.architecture
        self.student = Official(asked.architecture, 0.1 if vit else 0.0, asked.outputs).to(asked.device)
        self.teacher = Official(asked.architecture, 0.0, asked.outputs).to(asked.device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        groups = [{key: group[key] for key in ("params",)} for group in decay_groups(self.student)]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups) if vit else torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
        )
        self.centre = torch.zeros(1, asked.outputs, device=asked.device)

    def __call__(self, batch: Tensor) -> None:
        """A step on two views (B, 2, H, W, 3) uint8."""
        mean = torch.tensor((0.485, 0.456, 0.406), device=batch.device)
        std = torch.tensor((0.229, 0.224, 0.225), device=batch.device)
        images = ((batch.transpose(0, 1).flatten(0, 1) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        teacher, student = self.teacher(images), self.student(images)
        losses = []
        targets = F.softmax((teacher - self.centre) / 0.04, dim=-1).detach().chunk(2)
        for t, s in itertools.product(range(2), range(2)):
            if t != s:
                log_student = F.log_softmax((student / 0.1).chunk(2)[s], dim=-1)
                losses.append(torch.sum(-targets[t] * log_student, dim=-1).mean())
        loss = sum(losses) / len(losses)
        self.centre = self.centre * 0.9 + teacher.mean(dim=0, keepdim=True) * 0.1
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                coefficient = 3.0 / (parameter.grad.data.norm(2) + 1e-6)
                if coefficient < 1:
                    parameter.grad.data.mul_(coefficient)
        self.optimizer.step()
        with torch.no_grad():
            for q, k in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                k.data.mul_(0.996).add_((1 - 0.996) * q.detach().data)
        loss.item()


class BareStep:
    """The arithmetic of our step, without Lightning."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.model = make_model(asked).to(asked.device)
        self.optimizer = make_optimizer(self.model.student, self.model.told.optimizer, fused=True)
        self.precision = asked.precision

    def __call__(self, batch: Tensor) -> None:
        """A step on two views (B, 2, H, W, 3) uint8."""
        model = self.model
        with autocast(batch.device.type, self.precision):
            images = [model.normalise(batch.transpose(0, 1).flatten(0, 1))]
            with torch.no_grad():
                teacher = model.teacher(images)[1].unflatten(0, (2, -1))
            student = model.student(images)[1].unflatten(0, (2, -1))
            loss = model.loss(student, model.loss.teacher_probabilities(teacher, 0.04))
        loss.item()
        model.loss.update_centre(teacher)
        self.optimizer.zero_grad()
        loss.backward()
        clip_each(model.student.parameters(), 3.0)
        self.optimizer.step()
        move_average(model.teacher, model.student, 0.996)


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """As Lightning's plugin of that name."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def make_model(asked: argparse.Namespace) -> DINO:
    """As configs/ssl has it for the architecture."""
    vit = "vit" in asked.architecture
    return DINO(
        architecture=asked.architecture,
        outputs=asked.outputs,
        drop_path=0.1 if vit else 0.0,
        optimizer="adamw" if vit else "sgd",
        warmup_epochs=0,
        compile=asked.compile,
    )


class Forever(IterableDataset[list[Tensor]]):
    """One batch, again and again."""

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[list[Tensor]]:
        return itertools.repeat([self.batch], 10**6)


class KeptBatch(TileData):
    """TileData that has a batch already."""

    def __init__(self, batch: Tensor) -> None:
        super().__init__(Path(), Path(), batch_size=len(batch))
        self.batch = batch

    def setup(self, stage: str) -> None:
        """Nothing has to be found."""
        self._found, self.train_slides, self.mpp = [[Shard(Path(), 10**6)]], ("none",), 0.5

    def train_dataloader(self) -> Any:
        """The batch for ever."""
        return DataLoader(Forever(self.batch), batch_size=None)


class Stopwatch(Callback):
    """When each step ended."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, [0.0]
        self.wait: float | None = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes the time, and what share of it went by waiting."""
        self.ends.append(now(self.device))
        wait = trainer.callback_metrics.get("train/data_wait")
        self.wait = None if wait is None else float(wait)


def now(device: str) -> float:
    """Seconds: of the process on a CPU, of the wall when a GPU has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def rate_of_fit(asked: argparse.Namespace, data: TileData) -> tuple[float, float | None]:
    """Images/s of `lightning fit`'s own trainer, and data_wait."""
    watch = Stopwatch(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder, max_epochs=1, limit_train_batches=asked.warm + asked.steps,
            accelerator="gpu" if asked.device == "cuda" else "cpu", devices=1, precision=asked.precision,
            logger=False, callbacks=[watch], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(make_model(asked), data)
    seconds = watch.ends[-1] - watch.ends[asked.warm]
    return asked.batch * asked.steps / seconds, watch.wait


def rate_of(step: Any, batch: Tensor, asked: argparse.Namespace) -> float:
    """Images/s of a step."""
    for _ in range(asked.warm):
        step(batch)
    began = now(asked.device)
    for _ in range(asked.steps):
        step(batch)
    return len(batch) * asked.steps / (now(asked.device) - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="vit_small_patch16_224")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--outputs", type=int, default=65536)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tflops", type=float, help="what the device is said to do at that precision")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--slides", type=Path)
    parser.add_argument("--workers", type=int, default=8)
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    keep_freed_memory()  # as `lightning fit` does; the others gain by it too
    batch = torch.randint(0, 256, (asked.batch, 2, 224, 224, 3), dtype=torch.uint8)
    on_device = batch.to(asked.device)

    rates: dict[str, list[float]] = {}
    waits: list[float] = []
    for _ in range(asked.rounds):
        rates.setdefault("official, fp32", []).append(rate_of(OfficialStep(asked), on_device, asked))
        rates.setdefault("bare loop", []).append(rate_of(BareStep(asked), on_device, asked))
        rates.setdefault("papsmear", []).append(rate_of_fit(asked, KeptBatch(batch))[0])
        if asked.shards:
            data = TileData(asked.shards, asked.slides, batch_size=asked.batch, workers=asked.workers)
            rate, wait = rate_of_fit(asked, data)
            rates.setdefault("papsmear, from shards", []).append(rate)
            waits.append(wait or 0.0)
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["official, fp32"], strict=True)]
        print(f"{name:<24}{statistics.median(found):9.2f} images/s  {statistics.median(ratios):6.2f} x official")
    cost = [1 - a / b for a, b in zip(rates["papsmear"], rates["bare loop"], strict=True)]
    print(f"Lightning costs {statistics.median(cost):.1%} of the bare loop")
    if waits:
        print(f"data_wait, from shards: {statistics.median(waits):.1%}")
    with FlopCounterMode(display=False) as counter:
        BareStep(copy.copy(asked))(on_device)
    per_image = counter.get_total_flops() / asked.batch
    limit = f", at most {asked.tflops * 1e12 / per_image:.0f} images/s" if asked.tflops else ""
    print(f"{per_image / 1e9:.1f} GFLOP an image{limit}")


if __name__ == "__main__":
    main()
