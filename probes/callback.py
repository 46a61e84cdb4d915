"""k-NN on labelled cells while DINO trains: the one figure that tells whether the features get better.

DINO's loss does not. The figure is that of the official evaluation (Caron et al. 2021, arXiv 2104.14294, section 4:
weighted votes, T = 0.07), on folds that share no source picture, as in the probe report. The checkpoint and the encoder
with the best figure are kept beside the last. The training goes on as if nobody had looked.

Shapes: N cells, D features.
"""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from papsmear.errors import UsageError
from papsmear.probes.datasets import CellSet, read_cells
from papsmear.probes.knn import EXP, predict_knn
from papsmear.probes.scores import weighted_f1
from papsmear.probes.splits import Part, grouped_splits, random_splits, smallest_training_part, source_pictures
from papsmear.progress import say
from papsmear.ssl.dino import DINO
from papsmear.ssl.encoder import Encoder, embed_images, export_encoder

FOLDS = 4  # each cell is tested once
FIGURE = "val/knn_f1"
BEST_CHECKPOINT, BEST_ENCODER = "checkpoints/best-knn.ckpt", "encoder-best-knn.safetensors"


class KnnProbe(Callback):
    """Logs `val/knn_f1`, the weighted F1 of k-NN on a set of cells, and keeps the best checkpoint and its encoder."""

    def __init__(
        self, cells: Literal["herlev", "sipakmed"], folder: Path, every_n_epochs: int = 10, k: int = 20
    ) -> None:
        """Takes the set and when to look.

        Args:
            cells: Which set.
            folder: Where it was unpacked.
            every_n_epochs: How often; after the last epoch in any case.
            k: Neighbours; 20 as in the official evaluation.
        """
        for name, value in (("every_n_epochs", every_n_epochs), ("k", k)):
            if value < 1:
                raise UsageError(f"KnnProbe: {name} is {value}; give 1 or more")
        self.name, self.folder, self.every_n_epochs, self.k = cells, Path(folder), every_n_epochs, k
        self.best, self.best_epoch = -1.0, 0
        self._cells: CellSet | None = None
        self._folds: list[Part] = []

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far and its epoch, counted from 1: a run that goes on knows them."""
        return {"best": self.best, "best_epoch": self.best_epoch, "cells": self.name, "k": self.k}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict` gave it; figures of another set or k are no measure for this one's."""
        if (state_dict["cells"], state_dict["k"]) == (self.name, self.k):
            self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the cells, on the first process only, and deals them into folds."""
        if not isinstance(pl_module, DINO):
            raise UsageError(f"KnnProbe looks at DINO, not at {type(pl_module).__name__}; take it out of the callbacks")
        if stage != "fit" or not trainer.is_global_zero:
            return
        cells = read_cells(self.name, self.folder)
        for file, reason in cells.damaged.items():
            say(f"{cells.title}: {file} is left out: {reason}")
        self._folds = grouped_splits(cells.labels, source_pictures(cells), FOLDS, 0) or random_splits(
            cells.labels, FOLDS, 0
        )
        if self.k > (n_train := smallest_training_part(self._folds)):
            raise UsageError(f"KnnProbe: k is {self.k}, more than the {n_train} training cells of {self.folder}")
        self._cells = cells

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, logs, and keeps what is best; the other processes wait for the first one's figure."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        assert isinstance(pl_module, DINO)
        encoder = None
        if trainer.is_global_zero:
            # a copy: evaluation mode and batch statistics are no matter of the one that trains
            network = copy.deepcopy(pl_module.teacher.backbone)
            vars(network).pop("forward_features", None)  # a compiled one is still the training's
            encoder = Encoder(network, pl_module.card()).to(pl_module.device)
        f1 = float(trainer.strategy.broadcast(self._f1(encoder) if encoder else 0.0))
        pl_module.log(FIGURE, f1, prog_bar=True, sync_dist=True)
        if f1 > self.best:
            self.best, self.best_epoch = f1, epoch
            run = Path(trainer.default_root_dir)
            trainer.save_checkpoint(run / BEST_CHECKPOINT)
            if encoder:
                export_encoder(run / BEST_ENCODER, encoder.network, encoder.card)

    def _f1(self, encoder: Encoder) -> float:
        """The mean over the folds."""
        cells = self._cells
        assert cells is not None
        features = embed_images(encoder, cells.images)  # (N, D)
        scores = []
        for train, test in self._folds:
            near = predict_knn(features[train], cells.labels[train], features[test], [self.k], len(cells.classes))
            scores.append(weighted_f1(cells.labels[test], near[EXP][self.k]))
        return float(np.mean(scores))
