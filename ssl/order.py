"""The order of the tiles in an epoch, computed from seed and epoch alone; ranks and workers only take their parts.

So it is the same for any number of them, no worker can run dry and hang the others, a run that goes on goes on in the
same order, and what was in a batch can be told afterwards.

Each slide deals its tiles evenly over the epoch, so that a batch holds of every slide what is its share, and no batch
is of a few slides only. Reading stays local all the same: a slide deals its tiles run by run of neighbours, several
runs at a time where slides are few.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data.distributed import DistributedSampler

from papsmear import seeds

RUN = 32  # neighbouring tiles that are dealt as one
OPEN = 64  # runs, over all slides together, whose tiles are mixed with each other: 40 MB of shards

Position = tuple[int, int]  # epoch, and index of a tile among all


class TileOrder(DistributedSampler[list[Position]]):
    """The batches of an epoch, for one rank: every tile once over all ranks, but for an incomplete last batch.

    A batch is the same tiles for any number of ranks. It is a DistributedSampler, so that lightning leaves it as it is
    and tells it the epoch.
    """

    def __init__(self, of_slides: Sequence[int], batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.of_slides, self.batch_size, self.rank, self.world = of_slides, batch_size, rank, world
        self.seed, self.epoch = seed, 0
        self.done = (0, 0)  # an epoch that is gone on with, and how many of its batches were seen before

    def __len__(self) -> int:
        return sum(self.of_slides) // self.batch_size

    def __iter__(self) -> Iterator[list[Position]]:
        order = epoch_order(self.of_slides, self.seed, self.epoch)
        for number in range(self.first, len(self)):
            yield [(self.epoch, int(index)) for index in self._part(order, number)]

    @property
    def first(self) -> int:
        """The epoch's first batch that is still to be seen."""
        epoch, batches = self.done
        return batches if epoch == self.epoch else 0

    def batch(self, epoch: int, number: int) -> list[int]:
        """The tiles of this rank's `number`-th batch of an epoch."""
        return [int(index) for index in self._part(epoch_order(self.of_slides, self.seed, epoch), number)]

    def _part(self, order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        share = self.batch_size // self.world
        start = number * self.batch_size + self.rank * share
        return order[start : start + share]


def epoch_order(of_slides: Sequence[int], seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation (N,) of the tiles of S slides, `of_slides` (S,) of each, numbered slide by slide.

    A slide of n tiles has one at (i + phase) / n of the epoch for each i: systematic sampling (Madow & Madow 1944,
    Annals of Mathematical Statistics 15, 1). So a stretch of the epoch holds of each slide its share, rounded up or
    down, and B tiles in a row are of a stretch between (B - S) / N and (B + S) / N: all slides of at least N / (B - S)
    tiles are in each batch of B, and where S is larger than B, no slide more than n (B + S) / N times, rounded up.
    """
    rng, total, first = seeds.rng(seed, "order", epoch), sum(of_slides), 0
    when, which = np.empty(total), np.empty(total, np.int64)
    for n_tiles in filter(None, of_slides):
        part = slice(first, first + n_tiles)
        when[part] = (np.arange(n_tiles) + rng.random()) / n_tiles
        which[part] = first + _dealt(n_tiles, RUN * -(-OPEN * n_tiles // total), rng)
        first += n_tiles
    return which[np.argsort(when, kind="stable")]


def _dealt(n_tiles: int, window: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A permutation (n_tiles,) of a slide's tiles: runs of neighbours shuffled, then the tiles within windows."""
    runs = rng.permutation(-(-n_tiles // RUN))
    order = (runs[:, None] * RUN + np.arange(RUN)).reshape(-1)
    order = order[order < n_tiles]
    for start in range(0, n_tiles, window):
        rng.shuffle(order[start : start + window])
    return order
