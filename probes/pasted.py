"""C3P online: labelled tiles made anew each epoch, in a DataLoader's workers, by seed, epoch and tile alone.

Positions (epoch, number) come from the sampler, as in pretraining (`papsmear.ssl.order`), so a tile is the same for any
number of workers and after a resume.

Shapes: B tiles of a batch, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from papsmear import seeds
from papsmear.probes.pasting import Pasting, Tile
from papsmear.ssl.order import Position, TileOrder

Batch = tuple[Tensor, Tensor]


class PastedTiles(Dataset[Batch]):
    """Canvases (H, W, 3) uint8 of slides with `labels`, each with a cell pasted by `pasting`, another one an epoch."""

    def __init__(self, canvases: Sequence[Tile], labels: Sequence[int], pasting: Pasting, seed: int = 0) -> None:
        self.canvases, self.labels, self.pasting, self.seed = canvases, labels, pasting, seed

    def __len__(self) -> int:
        return len(self.canvases)

    def __getitem__(self, positions: list[Position]) -> Batch:
        """Tiles (B, H, W, 3) uint8 and their labels (B,) int64."""
        tiles = np.stack([self.tile(epoch, number) for epoch, number in positions])
        return torch.from_numpy(tiles), torch.tensor([self.labels[number] for _, number in positions])

    def tile(self, epoch: int, number: int) -> Tile:
        """The tile (H, W, 3) that an epoch makes of a canvas."""
        rng = seeds.rng(self.seed, "c3p", epoch, number)
        return self.pasting(self.canvases[number], self.labels[number], rng)

    def loader(self, batch_size: int, workers: int = 0) -> DataLoader[Batch]:
        """Batches in random order, every canvas once an epoch; its sampler's `set_epoch` chooses the epoch."""
        order = TileOrder([len(self)], batch_size, self.seed)
        return DataLoader(self, sampler=order, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
