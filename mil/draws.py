"""Which slides an epoch trains on, and in which order: by the seed and the epoch only, so that resumed runs agree.

Where positive slides are rare, or sites and scanners uneven, slides can be drawn so that each group comes as often
(Cheng et al. 2021 balance their batches over hospital, scanner and category). Draws are systematic: a slide that is
due 1.3 times an epoch is drawn once or twice, never five times or not at all (Madow 1949).

S: slides.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from papsmear.cohort import Slide
from papsmear.errors import UsageError
from papsmear.seeds import rng

Balance = Literal["none", "class", "site", "scanner"]


Cell = tuple[int | None, str]  # a class, and where slides are balanced over sites or scanners, one of those


def cells_of(slides: Sequence[Slide], balance: Balance) -> list[Cell]:
    """The cell of each slide (S,), empty without a balance; a UsageError where a slide has no site or scanner."""
    if balance == "none":
        return []
    groups = ["" if balance == "class" else slide.row.get(balance, "") for slide in slides]
    without = [slide.slide_id for slide, group in zip(slides, groups, strict=True) if not group]
    if balance != "class" and without:
        raise UsageError(
            f"data.balance={balance}: no {balance} in slides.csv for {', '.join(without)}; fill the column, or give "
            "data.balance=class"
        )
    return [(slide.label, group) for slide, group in zip(slides, groups, strict=True)]


def dues(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """How often each slide (S,) is due in an epoch, S in all: both classes as often, and each cell of a class."""
    cells_of_class = Counter(label for label, _ in set(cells))
    slides_of_cell = Counter(cells)
    share = len(cells) / len(cells_of_class)
    return np.array([share / cells_of_class[cell[0]] / slides_of_cell[cell] for cell in cells])


class EpochOrder(Sampler[int]):
    """The indices of `n` slides in an epoch's order: each once, or, where they have cells, as often as it is due."""

    def __init__(self, n: int, seed: int, cells: Sequence[Cell] = ()) -> None:
        self.n, self.seed, self.cells, self.epoch = n, seed, cells, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many slides."""
        return self.n

    def __iter__(self) -> Iterator[int]:
        """The indices of the slides in this epoch's order."""
        random = rng(self.seed, "bags", self.epoch)
        order = random.permutation(self.n).tolist()
        if self.cells:
            # The slides are stretches of a line, those of a cell side by side; every whole step along it is a draw.
            line = np.array(sorted(order, key=lambda slide: str(self.cells[slide])))  # keeps the order within a cell
            ends = np.cumsum(dues(self.cells)[line])
            draws = np.searchsorted(ends, np.arange(self.n) + random.random(), "right")
            order = random.permutation(line[np.minimum(draws, self.n - 1)]).tolist()
        yield from order
