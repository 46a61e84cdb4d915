"""A training that is killed or told to stop, at any step, ends with the bits of one that was let be.

The runs are real processes of `lightning fit`, forked from one that has imported everything: importing is most of the
time of so short a run. What strikes them is a callback that sends the signal from within, at a step and moment given.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from papsmear import seeds
from papsmear.errors import StoppedError
from papsmear.resume import Resume
from papsmear.signals import noted_signals
from papsmear.training import HARMLESS

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in HARMLESS))

PX, BATCHES, EPOCHS = 32, 6, 3
TINY = Path(__file__).resolve().parents[1] / "configs" / "ssl" / "tiny.yaml"

STRIKE = """
import os
import signal
import zlib
from pathlib import Path

from lightning.pytorch import Callback


class Strike(Callback):
    '''Sends this process a signal at a step, and writes down what each step was given.'''

    def __init__(self, folder: str, step: int = -1, moment: str = "on_after_backward", rank: int = 0,
                 number: str = "SIGKILL"):
        self.file, self.step, self.rank, self.number = Path(folder) / "seen.txt", step, rank, number
        setattr(self, moment, self.strike)

    def strike(self, trainer, *given):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), getattr(signal, self.number))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with self.file.open("a") as file:
            crc = zlib.crc32(batch[0].numpy().tobytes())
            file.write(f"{trainer.current_epoch} {batch_idx} {trainer.global_rank} {crc}\\n")
"""

SERVER = """
import json, os, sys, traceback
import lightning.pytorch.cli, papsmear.ssl.dino, papsmear.training
from papsmear.cli import main

def work(words, env, log):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ.update(env)
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1

for line in sys.stdin:
    pids = []
    for asked in json.loads(line):
        pid = os.fork()
        if not pid:
            os._exit(work(**asked))
        pids.append(pid)
    print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)
"""

Fit = Callable[..., list[int]]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for slide_id, n_tiles in (("s1", 12), ("s2", 14)):
        low = rng.integers(0, 256, (n_tiles, 6, 6, 3), dtype=np.uint8)
        write_shards(folder / "shards", slide_id, list(low.repeat(8, axis=1).repeat(8, axis=2)))
    (folder / "slides.csv").write_text("slide_id,path\ns1,a\ns2,b\n")
    (folder / "strike.py").write_text(STRIKE)
    return folder


@pytest.fixture(scope="module")
def common(cohort: Path) -> list[str]:
    """What all runs are told."""
    words = ["-c", str(TINY), f"--data.shards={cohort}/shards", f"--data.slides={cohort}/slides.csv"]
    words += ["--data.batch_size=4", "--data.workers=0", f"--data.crop_px={PX}", f"--model.input_px={PX}"]
    words += ["--model.architecture=test_resnet", "--model.outputs=16", "--model.drop_path=0.3"]
    return [*words, f"--trainer.max_epochs={EPOCHS}", "--trainer.logger=false"]


@pytest.fixture(scope="module")
def fit(cohort: Path, common: list[str]) -> Iterator[Fit]:
    """Trains in a folder on one or two ranks, and returns their exit statuses: `fit(run, ranks=2, step=7)`."""
    path = os.pathsep.join([str(cohort), *sys.path])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(folder: Path, *words: str, ranks: int = 1, minutes: float | None = None, **strike: Any) -> list[int]:
        folder.mkdir(exist_ok=True)
        more = [f"--trainer.callbacks.{name}={value}" for name, value in {"folder": folder, **strike}.items()]
        words = ("--trainer.callbacks+=strike.Strike", *more, *words)
        if minutes is not None:
            words = ("--trainer.callbacks+=papsmear.resume.Resume", f"--trainer.callbacks.minutes={minutes}", *words)
        words = (
            "fit",
            *common,
            "--trainer.strategy=ddp",
            f"--trainer.default_root_dir={folder}",
            f"--trainer.devices={ranks}",
            *words,
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        asked = [
            {"words": words, "env": {**environment, "LOCAL_RANK": str(rank)}, "log": str(folder / f"log-{rank}.txt")}
            for rank in range(ranks)
        ]
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        statuses: list[int] = json.loads(server.stdout.readline())
        return statuses

    with server:  # which closes its input at the end: it ends
        yield run


def logs(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("log-*.txt")))


def last(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def seen(folder: Path) -> dict[str, set[str]]:
    """What each rank was given at each batch of each epoch: one thing, however often it was given."""
    found: dict[str, set[str]] = {}
    for line in (folder / "seen.txt").read_text().splitlines():
        where, _, crc = line.rpartition(" ")
        found.setdefault(where, set()).add(crc)
    return found


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Two trees of tensors and numbers, bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, value in enumerate(one):
            assert_same(value, other[number], f"{where}.{number}")
    else:
        assert one == other, where


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Weights, centre and buffers, optimiser, counters of the loops, and the data in their order."""
    one, other = last(run), last(undisturbed)
    for part in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_same(one[part], other[part], part)
    assert "loss.centre" in one["state_dict"]
    assert one["global_step"] == BATCHES * EPOCHS
    assert seen(run) == seen(undisturbed)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def undisturbed(fit: Fit, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, int]:
    """A run that was let be, and how many ranks it had."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert fit(folder, ranks=request.param) == [0] * request.param, logs(folder)
    assert len(seen(folder)) == request.param * BATCHES * EPOCHS
    return folder, request.param


MOMENTS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


def test_killed_at_random_steps(fit: Fit, tmp_path: Path, undisturbed: tuple[Path, int]) -> None:
    """Once in each third of the run, with the last checkpoint from the step before or from the end of an epoch."""
    whole, ranks = undisturbed
    rng, went_on = seeds.rng(0, "kills", ranks), []
    for third, minutes in enumerate((0, None, 0)):
        step, moment = int(rng.integers(1, BATCHES)) + third * BATCHES, str(rng.choice(MOMENTS))
        statuses = fit(tmp_path, ranks=ranks, step=step, moment=moment, rank=int(rng.integers(ranks)), minutes=minutes)
        assert -signal.SIGKILL in statuses, logs(tmp_path)
        went_on.append(last(tmp_path)["global_step"])
        assert went_on[-1] == (step if minutes == 0 else BATCHES * third)
    assert fit(tmp_path, ranks=ranks) == [0] * ranks, logs(tmp_path)
    assert_same_run(tmp_path, whole)


def test_told_to_stop(fit: Fit, tmp_path: Path, undisturbed: tuple[Path, int]) -> None:
    """One rank is told, all stop after that step; in the last of an epoch, after the epoch; in the last, not at all."""
    whole, ranks = undisturbed
    stopped = [75] + [0] * (ranks - 1)
    middle, end, very_end = BATCHES // 2, 2 * BATCHES - 1, EPOCHS * BATCHES - 1
    assert fit(tmp_path, ranks=ranks, step=middle, rank=ranks - 1, number="SIGUSR1") == stopped, logs(tmp_path)
    assert last(tmp_path)["global_step"] == middle + 1
    words = f"at step {middle + 1}; start the command again: it goes on from there"
    assert logs(tmp_path).count(words) == 1, logs(tmp_path)
    assert fit(tmp_path, ranks=ranks, step=end, number="SIGTERM", moment="on_before_zero_grad") == stopped
    assert f"{tmp_path}: stopped by SIGTERM at step {end + 1};" in logs(tmp_path)
    assert last(tmp_path)["global_step"] == end + 1
    assert "Traceback" not in logs(tmp_path)
    assert fit(tmp_path, ranks=ranks, step=very_end, number="SIGTERM") == [0] * ranks
    assert_same_run(tmp_path, whole)
    assert {len(crcs) for crcs in seen(tmp_path).values()} == {1}


def test_the_ranks_that_lightning_starts_stop_together(cohort: Path, tmp_path: Path, common: list[str]) -> None:
    """Its watcher kills all where one of them ends badly: what the first has to say must come through."""
    words = [*common, "--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.default_root_dir={tmp_path}"]
    strike = {"folder": tmp_path, "step": 1, "rank": 1, "number": "SIGUSR1"}
    words += ["--trainer.callbacks+=strike.Strike", *(f"--trainer.callbacks.{k}={v}" for k, v in strike.items())]
    ended = subprocess.run(
        [sys.executable, "-m", "papsmear", "fit", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(cohort), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.count("stopped by a signal to another process at step 2; start the command again") == 1
    assert last(tmp_path)["global_step"] == 2


def test_a_loader_that_cannot_start_within_an_epoch_goes_back_to_the_end_of_the_last(tmp_path: Path) -> None:
    def train(folder: Path, told: list[int], ckpt: Path | None = None) -> Line:
        torch.manual_seed(0)
        line = Line(told)
        kept = ModelCheckpoint(folder / "checkpoints", filename="last", save_on_train_epoch_end=True)
        trainer = Trainer(
            default_root_dir=folder,
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[kept, Resume(minutes=0)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with noted_signals():
            trainer.fit(line, DataLoader(torch.ones(12, 2), batch_size=2), ckpt_path=ckpt, weights_only=True)
        return line

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    whole = train(tmp_path / "whole", [])
    with pytest.raises(StoppedError, match="stopped by SIGTERM at step 9;"):
        train(tmp_path / "parts", [8])
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    assert last(tmp_path / "parts")["global_step"] == 6
    parts = train(tmp_path / "parts", [], tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert torch.equal(whole.line.weight, parts.line.weight)


class Line(LightningModule):
    """Linear regression that is told to stop at some steps."""

    def __init__(self, told: list[int]) -> None:
        super().__init__()
        self.line, self.told = torch.nn.Linear(2, 1), told

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.global_step in self.told:
            os.kill(os.getpid(), signal.SIGTERM)
        return (self.line(batch) - 1).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
