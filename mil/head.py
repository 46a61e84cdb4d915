"""What a multiple-instance head is: one interface, so that training and diagnosis need not know which one they have.

A head is a module `Head(width, **settings)` with `forward(bag (N, D)) -> (logit (), score (N,))`, N the tiles of a
slide and D the width of their features; a higher score means that the tile spoke more for the head's answer. What a
head is trained by is its own matter too, since some learn from more than their logit: `loss`.

A training step takes several slides at once, packed: `losses`. Heads that pool do so in one pass, without a loop over
bags (`PackedHead`); for the others it is the loop.

Heads never see padding: `Standardised`, which every head stands behind, takes it out of the bag. So each head's
equations are those of its paper, and a padded bag gets the answer of the cut one, whatever the head.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from papsmear.mil.packed import Packed

CrossEntropy = Callable[[Tensor], Tensor]  # of a logit () against the slide's label, weighted by its class: ()
CrossEntropies = Callable[[Tensor, Tensor], Tensor]  # the same of logits (B,) against labels (B,): (B,)
ALONE = 1024  # tiles judged at once, each as a slide of its own
BLOCK = 2**18  # features that are standardised at once on the CPU: their float32 stays in its cache


class Head(nn.Module):
    """A head whose loss is the cross-entropy of its logit; those that add to it override `loss`."""

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """What training lowers () for one slide: its bag (N, D), its label 0 or 1, and the loss of a logit."""
        return cross_entropy(self(bag)[0])

    def losses(self, bags: Packed, labels: Tensor, cross_entropy: CrossEntropies) -> Tensor:
        """What training lowers for each of several slides (B,), with labels (B,) 0 or 1."""

        def of_one(bag: Tensor, label: Tensor) -> Tensor:
            return self.loss(bag, int(label), lambda logit: cross_entropy(logit, label))

        return torch.stack(list(map(of_one, bags.bags(), labels)))

    def alone(self, tiles: Tensor) -> Tensor:
        """The logit of each tile as a slide of its own, in evaluation: (N, D) -> (N,)."""
        logits: Tensor = torch.vmap(lambda tile: self(tile[None])[0], chunk_size=ALONE)(tiles)
        return logits


class PackedHead(Head):
    """A head that takes several bags in one pass: `forward_packed`, of which one bag is the case B = 1."""

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), scores of all tiles (N,)."""
        raise NotImplementedError  # each such head has its own

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), score (N,)."""
        logits, score = self.forward_packed(Packed(bag, [len(bag)]))
        return logits[0], score

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """See `Head.loss`."""
        one = torch.tensor([label], device=bag.device)
        return self.losses(Packed(bag, [len(bag)]), one, lambda logits, labels: cross_entropy(logits[0])[None])[0]

    def losses(self, bags: Packed, labels: Tensor, cross_entropy: CrossEntropies) -> Tensor:
        """See `Head.losses`."""
        return cross_entropy(self.forward_packed(bags)[0], labels)


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
        tiles = self._standardised([bag if mask is None else bag[mask]]).tiles
        logit, score = cast(tuple[Tensor, Tensor], self.head(tiles))
        if mask is not None:
            score = score.new_full(mask.shape, -torch.inf).masked_scatter(mask, score)
        return logit, score

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy, mask: Tensor | None = None) -> Tensor:
        """The head's loss () of a bag (N, D); arguments as in `Head.loss` and `forward`."""
        return self.head.loss(self._standardised([bag if mask is None else bag[mask]]).tiles, label, cross_entropy)

    def losses(self, bags: Sequence[Tensor], labels: Tensor, cross_entropy: CrossEntropies) -> Tensor:
        """The head's losses (B,) of bags (n, D) each; arguments as in `Head.losses`."""
        return self.head.losses(self._standardised(bags), labels, cross_entropy)

    def _standardised(self, bags: Sequence[Tensor]) -> Packed:
        """The standardised features of all bags, in the precision that the head's products have."""
        sizes = [len(bag) for bag in bags]
        if 0 in sizes:
            raise ValueError("a bag without tiles has no diagnosis")
        device = self.mean.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        tiles = torch.empty(sum(sizes), len(self.mean), dtype=dtype, device=self.mean.device)
        block = max(BLOCK // len(self.mean), 1) if device == "cpu" else max(sizes)
        blocks = [part for bag in bags for part in torch.split(bag, block)]
        scale = 1 / self.std
        first = 0
        for part in blocks:
            tiles[first : first + len(part)] = (part.float() - self.mean).mul_(scale)
            first += len(part)
        return Packed(tiles, sizes)
