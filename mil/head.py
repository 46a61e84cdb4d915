"""What a multiple-instance head is: one interface, so that training and diagnosis need not know which one they have.

A head is a module `Head(width, **settings)` with `forward(bag (N, D)) -> (logit (), score (N,))`, N the tiles of a
slide and D the width of their features; a higher score means that the tile spoke more for the head's answer. What a
head is trained by is its own matter too, since some learn from more than their logit: `loss`.

Heads never see padding: `Standardised`, which every head stands behind, takes it out of the bag. So each head's
equations are those of its paper, and a padded bag gets the answer of the cut one, whatever the head.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

CrossEntropy = Callable[[Tensor], Tensor]  # of a logit () against the slide's label, weighted by its class: ()


class Head(nn.Module):
    """A head whose loss is the cross-entropy of its logit; those that add to it override `loss`."""

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """What training lowers () for one slide: its bag (N, D), its label 0 or 1, and the loss of a logit."""
        return cross_entropy(self(bag)[0])


class Standardised(nn.Module):
    """A head behind a standardisation of its features, so that one learning rate suits every encoder.

    Features of frozen encoders differ in scale by orders of magnitude, around a mean that all tiles share. `mean`
    and `std` (D,) are measured on the training bags and travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, head: Head, width: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, D) of any float type -> logit (), score (N,), both float32; ValueError for a bag without tiles.

        `mask` (N,) is True where the bag holds a tile; the score of padding is -inf.
        """
        logit, score = cast(tuple[Tensor, Tensor], self.head(self._tiles(bag, mask)))
        if mask is not None:
            score = score.new_full(mask.shape, -torch.inf).masked_scatter(mask, score)
        return logit, score

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy, mask: Tensor | None = None) -> Tensor:
        """The head's loss () of a bag (N, D); arguments as in `Head.loss` and `forward`."""
        return self.head.loss(self._tiles(bag, mask), label, cross_entropy)

    def _tiles(self, bag: Tensor, mask: Tensor | None) -> Tensor:
        """The standardised features of the tiles alone."""
        tiles = bag if mask is None else bag[mask]
        if len(tiles) == 0:
            raise ValueError("a bag without tiles has no diagnosis")
        return (tiles.float() - self.mean) / self.std
