"""Attention-MIL on bags: training, validation, test and prediction of a slide-level head.

Everything that decides which epoch is kept happens at the end of a validation: the calibration, the threshold, the
figures of the whole split, and, where the epoch is the best so far, the export of `head.safetensors`. What a test
leaves is `outcome`'s. Files of a run lie in `trainer.default_root_dir`.
"""

import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from papsmear.errors import InputError, UsageError
from papsmear.mil.calibration import Calibration, calibrate
from papsmear.mil.data import BagData, Item
from papsmear.mil.heads import build_head
from papsmear.mil.metrics import Figures, choice, figures, table
from papsmear.mil.model import NAME, HeadCard, save_head
from papsmear.mil.operating import OperatingPoint, check_operating_point, choose_threshold
from papsmear.mil.outcome import Judged, log_outcome, outcome, write_outcome, write_predictions
from papsmear.mil.patience import Patience
from papsmear.mil.provenance import Provenance
from papsmear.mil.scope import Scope
from papsmear.mil.tile_labels import TileLabels
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
        operating_point: From which probability on a slide is called positive, chosen on the validation slides: youden,
            or the most specific point of a wanted sensitivity, such as {sensitivity: 0.95}.
        top_k: Judge a slide by so many tiles of highest score alone; null: by all.
        tile_loss: λ of L_slide + λ · L_tile, the loss of labelled tiles; 0: none.
        renew_every: Collect canvases anew every so many epochs, where cells are pasted (`data.cells`).
        patience: Stop after so many epochs without a better `val/choice`; null never stops.
    """

    monitor = ("val/choice", "max")

    def __init__(
        self,
        head: str = "gated_attention",
        head_args: dict[str, Any] | None = None,
        lr: float = 3e-4,
        weight_decay: float = 1e-2,
        operating_point: OperatingPoint = "youden",
        patience: int | None = 20,
        top_k: int | None = None,
        tile_loss: float = 0.0,
        renew_every: int = 10,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.head_name, self.head_args, self.top_k = head, head_args or {}, top_k
        self.lr, self.weight_decay = lr, weight_decay
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        check_operating_point(operating_point)
        self.operating_point, self.patience = operating_point, patience
        self.tile_loss, self.labelled = tile_loss, TileLabels(self.seed, renew_every) if tile_loss else None
        self.threshold, self.positive_weight, self.best = 0.5, 1.0, -np.inf
        self.calibration = Calibration()
        self.provenance: Provenance | None = None
        self.scope: Scope | None = None
        self.seen: list[Judged] = []

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
        self.head = build_head(self.head_name, self.bags.width, self.head_args, self.top_k)
        if stage == "fit":
            mean, std = self.bags.feature_statistics()
            self.head.mean.copy_(torch.from_numpy(mean))
            self.head.std.copy_(torch.from_numpy(std))
            self.provenance, self.scope = Provenance.of(self.bags), Scope.of(self.bags, mean, std)
            self.positive_weight = self.bags.positive_weight()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the head."""
        return torch.optim.AdamW(self.head.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def configure_callbacks(self) -> list[L.Callback]:
        """Early stopping and labelled tiles, where they are wanted."""
        stopping = None if self.patience is None else Patience(*self.monitor, self.patience)
        return [callback for callback in (stopping, self.labelled) if callback]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the operating point, the best figure so far and what the head was trained on beside the weights."""
        told = self.provenance.to_dict() if self.provenance else {}
        kept = {"threshold": self.threshold, "best": float(self.best), "provenance": told}
        checkpoint["mil"] = kept | {"calibration": vars(self.calibration)}

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
        self.calibration = Calibration(**kept.get("calibration", {}))

    # Steps

    def training_step(self, batch: list[Item], batch_idx: int) -> Tensor:
        """The mean loss of some slides; dropout depends on the seed and the position only, so resumed runs agree."""
        torch.manual_seed(derive(self.seed, self.current_epoch, batch_idx))
        labels = torch.tensor([item.label or 0 for item in batch], device=self.device)
        loss = self.head.losses([item.features for item in batch], labels, self._losses).mean()
        if self.labelled:
            loss = loss + self.tile_loss * self.labelled.loss(self.head, self.current_epoch, batch_idx)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of slides, any shape, positives weighted as their rarity in training asks."""
        weight = torch.tensor(self.positive_weight, device=logits.device)
        return nn.functional.binary_cross_entropy_with_logits(
            logits.float(), labels.float(), pos_weight=weight, reduction="none"
        )

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
        """In float32 whatever training's precision: the threshold is that of the logits that a diagnosis gives."""
        for item in batch:
            with torch.autocast(self.device.type, enabled=False):
                logit, score = self.head(item.features)  # (), (N,)
            if not torch.isfinite(logit):
                raise InputError(
                    f"slide {item.slide_id}: the head answers {float(logit)}; its training diverged: lower model.lr"
                )
            self.seen.append(Judged.of(item.slide_id, item.label, logit, score if self.trainer.testing else score[:0]))
        return [said.logit for said in self.seen[-len(batch) :]]

    # Ends of epochs

    def on_validation_epoch_end(self) -> None:
        """Logs the figures; when fitting, calibrates, chooses the threshold, and exports the head if it is the best."""
        said, logits = self._take_seen()
        labels = np.array([slide.label for slide in said], np.int64)
        if self.trainer.sanity_checking or len(np.unique(labels)) < 2:
            return  # only a limit on the batches leaves one class: the data module has checked the split
        if self._fitting:
            self.calibration = calibrate(labels, logits, self.bags.prior_log_odds())
            self.threshold = choose_threshold(labels, self.calibration.probability(logits), self.operating_point)
        found = figures(labels, self.calibration.probability(logits), self.threshold)
        self._log_figures("val", found)
        if not self._fitting:
            Console().print(table(f"{self._mark}validation, {len(said)} slides", found))
            return
        loss = float(self._losses(torch.from_numpy(logits), torch.from_numpy(labels)).mean())
        chosen = choice(labels, found.auc, loss)
        self.log_dict({"val/loss": loss, "val/choice": chosen}, batch_size=1)
        if chosen > self.best:
            self.best = chosen
            save_head(self._run / NAME, self.head, self.card())

    def on_test_epoch_end(self) -> None:
        """Prints the figures of the test fold, and leaves them in the run's folder and in W&B."""
        said, _ = self._take_seen()
        test = outcome(self.card(), self.bags, said)
        write_outcome(self._run, test)
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                log_outcome(logger.experiment, self._run, test)
        title = f"{self._mark}test on fold {self.bags.fold}, {len(said)} slides"
        Console().print(test.evaluation.table(title))

    def on_predict_epoch_end(self) -> None:
        """Writes predictions.csv."""
        said, _ = self._take_seen()
        write_predictions(self._run / "predictions.csv", said, self.calibration, self.threshold, self.provenance)

    def card(self) -> HeadCard:
        """The card of the head as it is now."""
        if self.provenance is None:
            raise UsageError("the head has not been trained yet; run lightning fit first")
        return HeadCard(
            head=self.head_name,
            head_args=self.head_args,
            threshold=self.threshold,
            scope=self.scope,
            top_k=self.top_k,
            **vars(self.calibration),
            **vars(self.provenance),
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

    def _take_seen(self) -> tuple[list[Judged], NDArray[np.float64]]:
        said, self.seen = self.seen, []
        return said, np.array([slide.logit for slide in said])

    def _log_figures(self, split: str, found: Figures) -> None:
        mark = "" if self._fitting else self._mark  # an encoder's leak is of test slides; fitting never sees them
        for name, value in found.headline().items():
            self.log(f"{mark}{split}/{name}", value, prog_bar=name == "auc", batch_size=1)
