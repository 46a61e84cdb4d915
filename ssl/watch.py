"""Watching a DINO run: speed, waiting and memory, and words when the teacher's output collapses.

A collapsed run goes on without an error and its loss looks calm, so it must be said. The two kinds are those of Caron
et al. 2021 (section 5.3 and figure 7; the loss is entropy + KL divergence, equation 5): without sharpening the output
becomes uniform, entropy and loss ln K; without centring it becomes one point for all images, and both 0.

Shapes: B images, 2 views of each, D features.
"""

import json
import resource
import sys
import time
from collections import deque
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from papsmear.errors import InputError
from papsmear.files import write_text
from papsmear.progress import say
from papsmear.ssl.data import TileData


@dataclass(frozen=True)
class Signs:
    """From where on a sign is one. Networks before their first step have entropy 0.97 ln K and feature std 0.4 or more.

    `uniform`: teacher entropy, as a share of ln K, above which its output is uniform. `one_point`: loss, as a share of
    ln K, below which it is one point; entropy alone is no sign, since a sharp teacher may say something else of each
    image. `feature_std`: below it all images have the same features. `steps`: how many in a row make an onset; also the
    steps that speed and data_wait are taken over. `data_wait`: share of the time above which advice is given.
    """

    uniform: float = 0.99
    one_point: float = 0.01
    feature_std: float = 0.05
    steps: int = 50
    data_wait: float = 0.05


UNIFORM, ONE_POINT, SAME_FEATURES = "uniform (loss = ln K)", "one point (loss = 0)", "one point (feature std = 0)"
_ONE_POINT_CAUSES = (
    "the centre does not follow the outputs (--model.centre_momentum: 0.9), the learning rate is too high (lower "
    "--model.base_lr), the teacher follows too fast (--model.ema_momentum: start nearer to 1), or the tiles are all "
    "alike, such as empty glass (papsmear show-batch shows them)"
)
CAUSES = {
    UNIFORM: "the teacher is not sharp enough (lower --model.teacher_temperature, such as [0.02, 0.02]), more outputs "
    "than so short a run can use (lower --model.outputs), or a learning rate that is too high or, with a small batch, "
    "too low (--model.base_lr)",
    ONE_POINT: _ONE_POINT_CAUSES,
    SAME_FEATURES: _ONE_POINT_CAUSES,
}


@dataclass(frozen=True)
class Figures:
    """What a step's forward pass gave."""

    step: int
    loss: float
    entropy: float
    feature_std: float


class Collapse:
    """Notices when the output of a teacher of `outputs` outputs collapses, and since when."""

    def __init__(self, outputs: int, signs: Signs) -> None:
        self.most, self.signs = log(outputs), signs
        self.kind, self.since, self.said = "", 0, False

    def see(self, figures: Figures) -> str | None:
        """What is to be said after a step: once at the onset of a collapse, and once at its end."""
        kind, before, told = self._kind(figures), self.kind, self.said
        if kind != before:
            self.kind, self.since, self.said = kind, figures.step, False
            return f"teacher output is no longer {before}, from step {figures.step} on" if told else None
        if not kind or told or figures.step - self.since + 1 < self.signs.steps:
            return None
        self.said = True
        return f"teacher output is {kind} since step {self.since}; usual causes: {CAUSES[kind]}"

    def _kind(self, figures: Figures) -> str:
        if figures.entropy >= self.signs.uniform * self.most:
            return UNIFORM
        if figures.loss <= self.signs.one_point * self.most:
            return ONE_POINT
        return SAME_FEATURES if figures.feature_std <= self.signs.feature_std else ""


class Watch(Callback):
    """Logs images/s, data_wait and memory; says when the output collapses and when loading is what takes the time.

    `data_wait` is the share of the time of the last steps that went by until the loader gave the next batch. On a GPU a
    part of that overlaps with work still queued there: it is the most that faster loading could save.
    """

    def __init__(self, outputs: int, signs: Signs = Signs()) -> None:
        self.signs, self.collapse = signs, Collapse(outputs, signs)
        self._times: deque[tuple[float, float]] = deque(maxlen=signs.steps)  # seconds of a step, of those waiting
        self._last: tuple[float, float] | None = None
        self._advised = False

    def state_dict(self) -> dict[str, Any]:
        """Since when the output has been collapsed: a run that goes on does not say it again."""
        return {"kind": self.collapse.kind, "since": self.collapse.since, "said": self.collapse.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict` gave it."""
        self.collapse.kind, self.collapse.since, self.collapse.said = (state_dict[k] for k in ("kind", "since", "said"))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What lies between two epochs, such as the checkpoint, belongs to no step."""
        self._last = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: list[Tensor], batch_idx: int
    ) -> None:
        """Logs, and says what is to be said."""
        now = time.monotonic(), float(getattr(trainer.train_dataloader, "waited_seconds", 0.0))
        if self._last is not None:
            self._times.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now
        pl_module.log("train/memory_gib", memory_gib(pl_module.device), prog_bar=True)
        if self._times:
            seconds, waited = (sum(column) for column in zip(*self._times, strict=True))
            images = len(batch[0]) * len(self._times) * trainer.world_size
            pl_module.log("train/images_per_second", images / seconds, prog_bar=True)
            pl_module.log("train/data_wait", waited / seconds, prog_bar=True)
            self._advise(trainer, waited / seconds)
        figures: Any = pl_module.figures
        message = self.collapse.see(figures)
        if message and trainer.is_global_zero:
            say(message)

    def _advise(self, trainer: Trainer, share: float) -> None:
        if self._advised or len(self._times) < self.signs.steps or share <= self.signs.data_wait:
            return
        self._advised = True
        if trainer.is_global_zero:
            workers = getattr(trainer.train_dataloader, "num_workers", 0)
            say(
                f"data_wait: {share:.1%} of the last {self.signs.steps} steps' time was spent waiting for tiles; give "
                f"more --data.workers (now {workers} a device; up to one a core), or copy the shards to a local disk"
            )


def memory_gib(device: torch.device) -> float:
    """The most memory that was in use so far: tensors on a GPU; on a CPU the process, without its workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation () over the batch of L2-normalised features (2, B, D), mean over D, times √D.

    Near 1 for features in all directions; 0 where all images have the same features.
    """
    unit = F.normalize(features.float(), dim=-1)
    spread: Tensor = unit.std(dim=1, correction=0).mean() * unit.shape[-1] ** 0.5
    return spread


def non_finite(trainer: Trainer, data: TileData, figures: Figures, batch_idx: int) -> InputError:
    """The error that stops a run whose loss is no number, after the keys of the batch's tiles are written down."""
    rank, world = trainer.global_rank, trainer.world_size
    name = f"nonfinite-step-{figures.step}{f'-rank{rank}' if world > 1 else ''}.json"
    file, tiles = Path(trainer.default_root_dir) / name, data.tiles()
    keys = [tiles.key(index) for index in data.order(rank, world).batch(trainer.current_epoch, batch_idx)]
    content = {
        "step": figures.step,
        "loss": str(figures.loss),  # JSON has neither NaN nor infinity
        "epoch": trainer.current_epoch,
        "batch": batch_idx,
        "tiles": [{"shard": shard, "key": key} for shard, key in keys],
    }
    write_text(file, json.dumps(content, indent=1))
    return InputError(
        f"{trainer.default_root_dir}: the loss is {figures.loss} at step {figures.step}, epoch "
        f"{trainer.current_epoch}; the tiles of that batch are listed in {file.name}; start in another folder, with a "
        "lower --model.base_lr, or with --trainer.precision=bf16-mixed where it is 16-mixed"
    )
