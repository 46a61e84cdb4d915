"""The order of the tiles in an epoch, computed from seed and epoch alone; ranks and workers only take their parts.

So it is the same for any number of them, no worker can run dry and hang the others, a run that goes on goes on in the
same order, and what was in a batch can be told afterwards. Reading stays local all the same: runs of neighbouring tiles
are shuffled, and then the tiles within windows of many runs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data.distributed import DistributedSampler

from papsmear import seeds

RUN = 32  # neighbouring tiles that are shuffled as one
WINDOW = 64 * RUN  # tiles that are mixed with each other: 40 MB of shards, and the runs of 64 places

Position = tuple[int, int]  # epoch, and index of a tile among all


class TileOrder(DistributedSampler[list[Position]]):
    """The batches of an epoch, for one rank: every tile once over all ranks, but for an incomplete last batch.

    A batch is the same tiles for any number of ranks. It is a DistributedSampler, so that lightning leaves it as it is
    and tells it the epoch.
    """

    def __init__(self, n_tiles: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.n_tiles, self.batch_size, self.rank, self.world = n_tiles, batch_size, rank, world
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return self.n_tiles // self.batch_size

    def __iter__(self) -> Iterator[list[Position]]:
        order = epoch_order(self.n_tiles, self.seed, self.epoch)
        for number in range(len(self)):
            yield [(self.epoch, int(index)) for index in self._part(order, number)]

    def batch(self, epoch: int, number: int) -> list[int]:
        """The tiles of this rank's `number`-th batch of an epoch."""
        return [int(index) for index in self._part(epoch_order(self.n_tiles, self.seed, epoch), number)]

    def _part(self, order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        share = self.batch_size // self.world
        start = number * self.batch_size + self.rank * share
        return order[start : start + share]


def epoch_order(n_tiles: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation (n_tiles,): runs of neighbouring tiles shuffled, then the tiles within windows."""
    rng = seeds.rng(seed, "order", epoch)
    runs = rng.permutation(-(-n_tiles // RUN))
    order = (runs[:, None] * RUN + np.arange(RUN)).reshape(-1)
    order = order[order < n_tiles]
    for start in range(0, n_tiles, WINDOW):
        rng.shuffle(order[start : start + WINDOW])
    return order
