"""Attention-MIL on bags: training, validation, test and prediction of a slide-level head.

Everything that decides which epoch is kept happens at the end of a validation: the figures of the whole split, the
threshold, and, where the epoch is the best so far, the export of `head.safetensors`. Files of a run lie in
`trainer.default_root_dir`.
"""

import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from papsmear.cohort import write_rows
from papsmear.errors import InputError, UsageError
from papsmear.files import write_text
from papsmear.mil.data import BagData, Item
from papsmear.mil.heads import build_head
from papsmear.mil.metrics import Figures, figures, probability, table, youden_threshold
from papsmear.mil.model import NAME, HeadCard, save_head
from papsmear.mil.provenance import Provenance
from papsmear.seeds import derive


class SlideMIL(L.LightningModule):
    """A multiple-instance head trained with class-weighted cross-entropy on whole bags.

    Validation names the best epoch by `val/choice`: the AUC, and of epochs with the same AUC, which are many where a
    fold has few positive slides, the one of lowest loss.

    Args:
        head: Name of a head in papsmear.mil.heads, such as gated_attention.
        head_args: Its settings, such as {hidden: 128, dropout: 0.25}.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
    """

    monitor = ("val/choice", "max")

    def __init__(
        self,
        head: str = "gated_attention",
        head_args: dict[str, Any] | None = None,
        lr: float = 3e-4,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.head_name, self.head_args = head, head_args or {}
        self.lr, self.weight_decay = lr, weight_decay
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.threshold = 0.5
        self.positive_weight = 1.0
        self.best = -np.inf
        self.provenance: Provenance | None = None
        self.seen: list[tuple[Item, float]] = []

    @property
    def bags(self) -> BagData:
        """The data module that the run was started with."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, BagData):
            raise UsageError(f"data: SlideMIL trains on papsmear.mil.data.BagData, not on {type(data).__name__}")
        return data

    # Building and keeping

    def setup(self, stage: str) -> None:
        """Builds the head for the width of the bags, standardising by the training bags when fitting."""
        self.bags.seed = self.seed
        torch.manual_seed(derive(self.seed, "head"))
        self.head = build_head(self.head_name, self.bags.width, self.head_args)
        if stage == "fit":
            mean, std = self.bags.feature_statistics()
            self.head.mean.copy_(torch.from_numpy(mean))
            self.head.std.copy_(torch.from_numpy(std))
            self.provenance = Provenance.of(self.bags)
            self.positive_weight = self.bags.positive_weight()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the head."""
        return torch.optim.AdamW(self.head.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the threshold, the best figure so far and what the head was trained on beside the weights."""
        told = self.provenance.to_dict() if self.provenance else {}
        checkpoint["mil"] = {"threshold": self.threshold, "best": float(self.best), "provenance": told}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes these back; a UsageError where the checkpoint and the bags do not fit together."""
        if "mil" not in checkpoint:
            raise UsageError(
                "--ckpt_path: the checkpoint is not one of SlideMIL; give one that configs/mil.yaml trained"
            )
        kept = checkpoint["mil"]
        provenance = Provenance.from_dict(kept["provenance"])
        provenance.check_encoder(self.bags)
        if self._fitting:
            provenance.check_same_slides(self.bags)
        else:
            provenance.check_unseen(self.bags, "test" if self.trainer.testing else "validation")
        self.threshold, self.best, self.provenance = kept["threshold"], kept["best"], provenance

    # Steps

    def training_step(self, batch: list[Item], batch_idx: int) -> Tensor:
        """The mean loss of some slides; dropout depends on the seed and the position only, so resumed runs agree."""
        torch.manual_seed(derive(self.seed, self.current_epoch, batch_idx))
        losses = [self.head.loss(item.features, item.label or 0, partial(self._loss, item=item)) for item in batch]
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def _loss(self, logit: Tensor, item: Item) -> Tensor:
        """Cross-entropy () of one slide, positives weighted as their rarity in training asks."""
        target = torch.full_like(logit, float(item.label or 0))
        weight = torch.full_like(logit, self.positive_weight)
        return nn.functional.binary_cross_entropy_with_logits(logit, target, pos_weight=weight)

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Keeps each slide's logit for the end of the epoch."""
        self._judge(batch)

    def test_step(self, batch: list[Item], batch_idx: int) -> None:
        """Keeps each slide's logit for the end of the epoch."""
        self._judge(batch)

    def predict_step(self, batch: list[Item], batch_idx: int) -> list[float]:
        """The slides' logits, also kept for the end of the epoch."""
        return self._judge(batch)

    def _judge(self, batch: list[Item]) -> list[float]:
        logits = [float(self.head(item.features)[0]) for item in batch]
        for item, logit in zip(batch, logits, strict=True):
            if not np.isfinite(logit):
                raise InputError(
                    f"slide {item.slide_id}: the head answers {logit}; its training diverged: lower model.lr"
                )
            self.seen.append((item._replace(features=torch.empty(0)), logit))
        return logits

    # Ends of epochs

    def on_validation_epoch_end(self) -> None:
        """Logs the figures; when fitting, chooses the threshold and exports the head if it is the best so far."""
        items, logits = self._take_seen()
        labels, probabilities = _labels(items), probability(logits)
        if self.trainer.sanity_checking or len(np.unique(labels)) < 2:
            return  # only a limit on the batches leaves one class: the data module has checked the split
        if self._fitting:
            self.threshold = youden_threshold(labels, probabilities)
        found = figures(labels, probabilities, self.threshold)
        self._log_figures("val", found)
        if not self._fitting:
            Console().print(table(f"{self._mark}validation, {len(items)} slides", found))
            return
        losses = [self._loss(torch.tensor(logit), item) for logit, item in zip(logits, items, strict=True)]
        loss = float(torch.stack(losses).mean())
        # AUC moves in steps of at least 1 / (2 * positives * negatives): less than a step is left to the loss.
        step = 0.5 / (int(labels.sum()) * int((1 - labels).sum()))
        choice = float(np.float32(found.auc + 0.99 * step * np.exp(-loss)))  # as rounded as what best.ckpt is chosen by
        self.log_dict({"val/loss": loss, "val/choice": choice}, batch_size=1)
        if choice > self.best:
            self.best = choice
            save_head(self._run / NAME, self.head, self.card())

    def on_test_epoch_end(self) -> None:
        """Prints the figures of the test fold and writes test.json and test.csv."""
        items, logits = self._take_seen()
        labels, probabilities = _labels(items), probability(logits)
        found = figures(labels, probabilities, self.threshold)
        self._log_figures("test", found)
        told = {"fold": self.bags.fold, "leak": self.bags.leak, "slides": len(items)} | asdict(found)
        told |= {"sensitivity": found.sensitivity, "specificity": found.specificity}
        write_text(self._run / "test.json", json.dumps(told, indent=1) + "\n")
        fold = str(self.bags.fold)
        rows = [
            {"slide_id": item.slide_id, "fold": fold, "label": str(item.label), "probability": f"{p:.6f}"}
            for item, p in zip(items, probabilities, strict=True)
        ]
        write_rows(self._run / "test.csv", rows)
        Console().print(table(f"{self._mark}test on fold {self.bags.fold}, {len(items)} slides", found))

    def on_predict_epoch_end(self) -> None:
        """Writes predictions.csv, which says of each slide whether the head has seen it in training."""
        items, logits = self._take_seen()
        part_of: dict[str, str] = {}
        if self.provenance:
            part_of |= dict.fromkeys(self.provenance.train_slides, "train")
            part_of |= dict.fromkeys(self.provenance.validation_slides, "validation")
        rows = [
            {
                "slide_id": item.slide_id,
                "label": "" if item.label is None else str(item.label),
                "seen_in": part_of.get(item.slide_id, ""),
                "probability": f"{p:.6f}",
                "positive": str(int(p >= self.threshold)),
            }
            for item, p in zip(items, probability(logits), strict=True)
        ]
        write_rows(self._run / "predictions.csv", rows)

    def card(self) -> HeadCard:
        """The card of the head as it is now."""
        if self.provenance is None:
            raise UsageError("the head has not been trained yet; run lightning fit first")
        return HeadCard(
            head=self.head_name, head_args=self.head_args, threshold=self.threshold, **vars(self.provenance)
        )

    @property
    def _run(self) -> Path:
        return Path(self.trainer.default_root_dir)

    @property
    def _fitting(self) -> bool:
        return self.trainer.state.fn == "fit"

    @property
    def _mark(self) -> str:
        return "LEAK " if self.bags.leak else ""

    def _take_seen(self) -> tuple[list[Item], NDArray[np.float64]]:
        items, logits = [item for item, _ in self.seen], np.array([logit for _, logit in self.seen])
        self.seen = []
        return items, logits

    def _log_figures(self, split: str, found: Figures) -> None:
        names = {
            "auc": found.auc,
            "average_precision": found.average_precision,
            "sensitivity": found.sensitivity,
            "specificity": found.specificity,
            "threshold": found.threshold,
        }
        mark = "" if self._fitting else self._mark  # an encoder's leak is of test slides; fitting never sees them
        for name, value in names.items():
            self.log(f"{mark}{split}/{name}", value, prog_bar=name == "auc", batch_size=1)


def _labels(items: list[Item]) -> NDArray[np.int64]:
    return np.array([item.label for item in items], np.int64)
