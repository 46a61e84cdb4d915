"""Training speed of gated attention: bags a second here, in torchmil, and in a plain loop, on one core.

    python benchmarks/mil_training.py                     # bags of 5,200 x 384 and x 2,048
    python benchmarks/mil_training.py --tiles 500         # to try it
    pip install --no-deps --target /tmp/torchmil torchmil tensordict pyvers einops cloudpickle orjson
    PYTHONPATH=/tmp/torchmil python benchmarks/mil_training.py     # with torchmil, which needs no more than these

Two networks: gated attention on the features themselves, as torchmil's ABMIL has it, and behind an embedding of 256
with ReLU and dropout, as here by default. A step is all that training does with bags in memory: forward, backward,
AdamW. Others are given bags that are standardised already, and take them one by one in float32; ours are standardised
in the step. Rates are those of CPU time, all networks in turn in each round, so that a busy machine slows all alike.

The last column is `lightning fit -c configs/mil.yaml` in bfloat16, with all that it does between the steps of an epoch
(loading, logging, progress), right after the others.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import h5py
import lightning as L
import numpy as np
import torch
from mil_crossval import CONFIG, write_cohort
from torch import Tensor, nn

from papsmear.memory import keep_freed_memory
from papsmear.mil.bags import read_features
from papsmear.mil.heads import build_head
from papsmear.training import train

Step = Callable[[list[int]], None]  # one step on the bags of these indices
EMBEDDING, HIDDEN, DROPOUT = 256, 128, 0.25
cross_entropy = nn.functional.binary_cross_entropy_with_logits


class Plain(nn.Module):
    """Gated attention (Ilse et al. 2018, equations 7 and 9) as it is usually written: (N, D) -> logit ()."""

    def __init__(self, width: int, embedding: bool) -> None:
        super().__init__()
        self.embed = embed(width) if embedding else nn.Identity()
        width = EMBEDDING if embedding else width
        self.content, self.gate = nn.Linear(width, HIDDEN), nn.Linear(width, HIDDEN)
        self.weigh, self.classify = nn.Linear(HIDDEN, 1), nn.Linear(width, 1)

    def forward(self, bag: Tensor) -> Tensor:
        h = self.embed(bag)  # (N, E)
        weight = self.weigh(torch.tanh(self.content(h)) * torch.sigmoid(self.gate(h)))  # (N, 1)
        logit: Tensor = self.classify(torch.softmax(weight, dim=0).T @ h).squeeze()
        return logit


def embed(width: int) -> nn.Sequential:
    """The embedding of the features."""
    return nn.Sequential(nn.Linear(width, EMBEDDING), nn.ReLU(), nn.Dropout(DROPOUT))


def one_by_one(model: nn.Module, bags: list[Tensor], lead: bool) -> Step:
    """A step a bag, in float32; with a leading axis of 1 for torchmil."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    standardised = [((bag.float() - 1) / 0.1)[None] if lead else (bag.float() - 1) / 0.1 for bag in bags]

    def step(indices: list[int]) -> None:
        for i in indices:
            loss = cross_entropy(model(standardised[i]).squeeze(), torch.tensor(float(i % 2)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def ours(bags: list[Tensor], embedding: bool, precision: torch.dtype) -> Step:
    """A step on several bags, as `SlideMIL` does it."""
    head = build_head("gated_attention", bags[0].shape[1], {} if embedding else {"embedding": None})
    head.mean += 1
    head.std *= 0.1
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-4)

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits.float(), labels.float(), reduction="none")

    def step(indices: list[int]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = head.losses([bags[i] for i in indices], torch.tensor(indices) % 2, losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rates(steps: dict[str, Step], bags: int, batch: int, rounds: int) -> dict[str, float]:
    """Bags a CPU second of each, the median of the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            for first in range(0, bags, batch):
                step(list(range(first, first + batch)))
            if number:  # the first round warms up
                seconds[name].append((time.process_time() - began) / bags)
    return {name: 1 / statistics.median(found) for name, found in seconds.items()}


class Clock(L.Callback):
    """CPU seconds a bag of each epoch's training steps, validation left out."""

    seconds: ClassVar[list[float]] = []  # of the class: it is lightning that makes the callback

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.is_last_batch:
            slides = len(trainer.datamodule.parts["train"])
            self.seconds.append((time.process_time() - self.began) / slides)


def by_lightning(tiles: int, width: int, batch: int, embedding: bool, epochs: int = 6) -> float:
    """Bags a CPU second of `lightning fit`, the median of the epochs but the first."""
    Clock.seconds.clear()
    with tempfile.TemporaryDirectory(prefix="mil-training-") as name:
        folder = Path(name)
        write_cohort(folder, 40, tiles, width)
        words = [f"--data.features={folder / 'features'}", f"--data.slides={folder / 'slides.csv'}"]
        words += [f"--data.batch_size={batch}", "--model.patience=null", "--trainer.callbacks+=__main__.Clock"]
        words += [] if embedding else ["--model.head_args={embedding: null}"]
        trainer = {"max_epochs": epochs, "precision": "bf16-mixed", "accelerator": "cpu", "default_root_dir": folder}
        with contextlib.redirect_stderr(io.StringIO()):
            train(["fit", f"-c={CONFIG}", *words, *(f"--trainer.{key}={value}" for key, value in trainer.items())])
    return 1 / statistics.median(Clock.seconds[1:])


def reading(bag: Tensor) -> dict[str, float]:
    """CPU milliseconds to read a bag of ours, and one of CLAM or TRIDENT, which is done once a run."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="mil-training-") as folder:
        for name, dtype, chunks in (("ours", np.float16, None), ("CLAM or TRIDENT", np.float32, (1, bag.shape[1]))):
            file = Path(folder) / "s1.h5"
            with h5py.File(file, "w") as h5:
                h5.create_dataset("features", data=bag.numpy().astype(dtype), chunks=chunks)
                h5["coords"] = np.zeros((len(bag), 2), np.int32)
            seconds = []
            for _ in range(5):
                began = time.process_time()
                read_features(file)
                seconds.append(time.process_time() - began)
            found[name] = 1000 * statistics.median(seconds)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=5200)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 2048])
    parser.add_argument("--batch", type=int, default=4, help="bags a step, of ours")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = "offline"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # this and the next as papsmear's training, here for all alike
    keep_freed_memory()
    reads = []
    there = importlib.util.find_spec("torchmil") is not None
    others = ("torchmil | " if there else "") + "plain loop"
    print(f"| bags | network | {others} | float32 | bfloat16 | times | lightning fit | times |")
    print("|---|---|" + "---|" * (6 + there))
    for width in asked.widths:
        bags = [(1 + 0.1 * torch.randn(asked.tiles, width)).half() for _ in range(asked.batch)]
        for embedding in (False, True):
            steps = {
                "plain": one_by_one(Plain(width, embedding), bags, lead=False),
                "float32": ours(bags, embedding, torch.float32),
                "bfloat16": ours(bags, embedding, torch.bfloat16),
            }
            if there:
                from torchmil.models import ABMIL

                extractor = embed(width) if embedding else nn.Identity()
                model = ABMIL(in_shape=(width,), att_dim=HIDDEN, gated=True, feat_ext=extractor)
                steps = {"torchmil": one_by_one(model, bags, lead=True), **steps}
            found = rates(steps, len(bags), asked.batch, asked.rounds)
            first = next(iter(found))
            fit = by_lightning(asked.tiles, width, asked.batch, embedding)
            times, fit_times = (f"{rate / found[first]:.1f} times {first}" for rate in (found["bfloat16"], fit))
            name = f"embedding of {EMBEDDING}" if embedding else "no embedding"
            cells = [f"{asked.tiles} x {width}", name, *(f"{rate:.1f}" for rate in found.values()), times]
            cells += [f"{fit:.1f}", fit_times]
            print(f"| {' | '.join(cells)} |", flush=True)
        told = ", ".join(f"{ms:.1f} ms {name}" for name, ms in reading(bags[0]).items())
        reads.append(f"Reading a bag of {asked.tiles} x {width}, once a run: {told}.")
    print("\n" + "\n".join(reads))


if __name__ == "__main__":
    main()
