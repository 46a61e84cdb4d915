"""One fine-tuned network: an encoder with a new layer, trained on the patches of a fold and tested on its cells.

The encoder's own layers learn at a tenth of the new layer's rate (Zhang et al., JBHI 2017). What is learnt hangs on
the seed and the position (splits, task, fold), not on the number of loading processes.

Shapes: B patches, S their side, N cells of the set, Q tested ones, C classes of the task.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from papsmear.errors import InputError
from papsmear.probes.deeppap import DeepPap
from papsmear.probes.knn import Ints
from papsmear.probes.nuclei import Nucleus
from papsmear.probes.patches import Floats64, Views, displacements, views_to_test, views_to_train
from papsmear.progress import track
from papsmear.seeds import derive
from papsmear.ssl.encoder import Encoder

TRANSFERRED_RATE = 0.1  # of the new layer's learning rate
MOMENTUM, WEIGHT_DECAY, DROPOUT = 0.9, 5e-4, 0.5


@dataclass(frozen=True)
class Work:
    """What all networks of a run have in common: N images, their nuclei, which of them are abnormal (N,), and how."""

    encoder: Encoder
    images: tuple[NDArray[np.uint8], ...]
    nuclei: tuple[Nucleus, ...]
    abnormal: NDArray[np.bool_]
    plan: DeepPap
    seed: int
    workers: int = 0


class TunedNetwork(nn.Module):
    """A copy of the encoder, free to learn, under dropout and a new linear layer."""

    def __init__(self, encoder: Encoder, n_classes: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.encoder.network.requires_grad_(True)
        self.n_classes = n_classes
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(encoder.width, n_classes))
        self.to(encoder.mean.device)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (B, C) float32 of uint8 patches (B, S, S, 3)."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self.encoder.mean.device.type == "cuda"):
            features = self.encoder(patches)  # (B, D)
        logits: Tensor = self.head(features)
        return logits

    def rates(self, lr: float) -> list[dict[str, object]]:
        """The optimiser's groups: the transferred layers, and the new one."""
        transferred = {"params": list(self.encoder.parameters()), "lr": lr * TRANSFERRED_RATE}
        return [transferred, {"params": list(self.head.parameters()), "lr": lr}]


def fit(work: Work, train: Ints, targets: Ints, *place: str | int) -> tuple[TunedNetwork, list[float]]:
    """Fine-tunes on the cells `train`, whose classes are in `targets` (N,); and the mean loss of each epoch.

    `place` says which of the run's networks this is. Raises InputError where the loss is not finite.
    """
    plan, losses, device = work.plan, [], work.encoder.mean.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive(work.seed, "network", *place))
        network = TunedNetwork(work.encoder, int(targets.max()) + 1)
        optimizer = torch.optim.SGD(network.rates(plan.lr), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=-(-plan.epochs // 3), gamma=0.1)
        network.train()
        for epoch in range(plan.epochs):
            views = views_to_train(train, work.abnormal, plan, work.seed, *place, epoch)
            total = torch.zeros((), device=device)
            for patches, whose in _batches(work, views, f"{place}, epoch {epoch + 1} of {plan.epochs}"):
                truth = torch.from_numpy(targets[whose]).to(device)  # (B,)
                loss = nn.functional.cross_entropy(network(patches), truth)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
                total += loss.detach() * len(whose)
            schedule.step()
            losses.append(float(total) / len(views))
            if not np.isfinite(losses[-1]):
                raise InputError(
                    f"encoder {work.encoder.card.name}: the loss is not finite in epoch {epoch + 1}; "
                    f"lower --protocol.lr (here {plan.lr}), or take another encoder"
                )
    return network.eval(), losses


@torch.inference_mode()
def mean_scores(work: Work, network: TunedNetwork, test: Ints, displaced_px: int = 0) -> Floats64:
    """Scores (Q, C) of the cells `test`: the mean softmax over all views and crops.

    With `displaced_px` each nucleus's centre is displaced by so many patch px.
    """
    views = views_to_test(test, work.plan, work.seed)
    if displaced_px:
        views = views.displaced(displacements(len(work.images), displaced_px, work.seed))
    total = torch.zeros(len(work.images), network.n_classes, dtype=torch.float64)  # (N, C)
    for patches, whose in _batches(work, views, f"testing, {displaced_px} px displaced"):
        total.index_add_(0, torch.from_numpy(whose), network(patches).double().softmax(dim=1).cpu())
    found: Floats64 = (total[test] / (len(views) / len(test))).numpy()
    return found


class _Patches(Dataset[tuple[Tensor, Ints]]):
    """Batches of patches, each an item, so that loading processes change nothing."""

    def __init__(self, work: Work, views: Views) -> None:
        self.images, self.nuclei, self.views = work.images, work.nuclei, views
        self.side_px = work.encoder.card.input_px
        # Equal parts, since BatchNorm cannot learn from a last batch of one patch.
        self.rows = np.array_split(np.arange(len(views)), -(-len(views) // work.plan.batch_size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: int) -> tuple[Tensor, Ints]:
        """Patches (B, S, S, 3) uint8 and the cells that they show (B,)."""
        rows = self.rows[batch]
        whose = self.views.cell[rows]
        patches = [
            self.views.cut(row, self.images[cell], self.nuclei[cell], self.side_px)
            for row, cell in zip(rows.tolist(), whose.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(patches)), whose


def _batches(work: Work, views: Views, what: str) -> Iterator[tuple[Tensor, Ints]]:
    patches = _Patches(work, views)
    loader = DataLoader(
        patches, batch_size=None, num_workers=work.workers, worker_init_fn=_one_thread, collate_fn=_as_it_is
    )
    yield from track(loader, what, len(patches))


def _as_it_is(item: Any) -> Any:
    return item


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism
