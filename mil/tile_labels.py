"""The labelled tiles of a training: read when it begins and, where cells are pasted, made anew as the head learns.

What a run that goes on needs is which tiles were collected, and in which epoch; that is kept in its checkpoints, and
the same tiles are made of it again.
"""

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from papsmear import seeds
from papsmear.errors import UsageError
from papsmear.mil.data import BagData
from papsmear.mil.head import Standardised
from papsmear.mil.suspicious import Canvases, Chosen
from papsmear.mil.tiles import TILES_A_STEP, LabelledTiles, annotated_tiles, tile_loss

if TYPE_CHECKING:
    from papsmear.mil.module import SlideMIL


class TileLabels(L.Callback):
    """The annotated tiles, where there are any, and pasted ones, where there are cells: each as much of a step."""

    def __init__(self, seed: int, renew_every: int) -> None:
        if renew_every < 1:
            raise UsageError(f"model.renew_every={renew_every}: canvases are collected every 1 epoch or more")
        self.seed, self.renew_every = seed, renew_every
        self.epoch = 0
        self.chosen: Chosen = {}
        self.annotated: LabelledTiles | None = None
        self.canvases: Canvases | None = None
        self.pasted: LabelledTiles | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads what does not change; a UsageError where nothing labels a tile."""
        bags: BagData = trainer.datamodule  # type: ignore[attr-defined]  # lightning sets it
        self.annotated = annotated_tiles(bags, self.seed)
        self.canvases = Canvases.of(bags, self.seed)
        if self.annotated is None and self.canvases is None:
            raise UsageError(
                f"model.tile_loss: no tile has a label: name the annotations of positive slides in {bags.slides}, or "
                "give cells to paste in data.cells, with data.shards; or set model.tile_loss=0"
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: "SlideMIL") -> None:  # type: ignore[override]  # it hangs on SlideMIL alone
        """Collects canvases by the head as it is now, every `renew_every` epochs, and pastes cells on them."""
        if self.canvases is None:
            return
        epoch = trainer.current_epoch
        if epoch % self.renew_every == 0:
            self.epoch, self.chosen = epoch, self.canvases.collect(pl_module.head)
            self.pasted = None
        if self.pasted is None:
            self.pasted = self.canvases.paste(self.chosen, self.epoch)

    def loss(self, head: Standardised, epoch: int, step: int) -> Tensor:
        """L_tile () of the tiles that seed, epoch and step draw."""
        random = seeds.rng(self.seed, "tiles", epoch, step)
        sources = [source for source in (self.annotated, self.pasted) if source is not None]
        drawn = [source.draw(TILES_A_STEP // len(sources), random) for source in sources]
        device = head.mean.device
        tiles = LabelledTiles(
            torch.cat([some.features for some in drawn]).to(device), torch.cat([some.labels for some in drawn])
        )
        return tile_loss(head, tiles)

    def state_dict(self) -> dict[str, Any]:
        """The collected tiles and their epoch."""
        return {"epoch": self.epoch, "chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes these back."""
        self.epoch, self.chosen = state_dict["epoch"], state_dict["chosen"]
