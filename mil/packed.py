"""Several bags in one tensor, one after the other: no padding to the longest, and no loop over bags.

What a head does to each tile it does to all of them at once; what it does to a bag, such as a softmax over its
tiles, are the segment operations below.

B: bags. N: tiles of all of them. M: columns. E: width of what is pooled.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Packed:
    """The tiles (N, D) of bags of `sizes` (B,) tiles each, every one at least 1."""

    def __init__(self, tiles: Tensor, sizes: Sequence[int]) -> None:
        self.tiles = tiles
        self.sizes = torch.tensor(sizes, device=tiles.device)

    @cached_property
    def bag_of(self) -> Tensor:
        """The bag of each tile (N,)."""
        return torch.arange(len(self.sizes), device=self.tiles.device).repeat_interleave(self.sizes)

    @cached_property
    def place(self) -> Tensor:
        """The place of each tile in its bag (N,), from 0."""
        first = self.sizes.cumsum(0) - self.sizes  # (B,)
        return torch.arange(len(self.tiles), device=self.tiles.device) - first[self.bag_of]

    def bags(self) -> tuple[Tensor, ...]:
        """The bags one by one, for heads that cannot take several at once."""
        return torch.split(self.tiles, self.sizes.tolist())

    def softmax(self, weight: Tensor) -> Tensor:
        """Softmax over the tiles of each bag, (N, M) -> (N, M) float32."""
        weight = weight.float()
        highest = torch.segment_reduce(weight.detach(), "max", lengths=self.sizes)  # (B, M)
        e = torch.exp(weight - highest[self.bag_of])  # (N, M)
        total = torch.segment_reduce(e, "sum", lengths=self.sizes)  # (B, M)
        return e / total[self.bag_of]

    def pool(self, weight: Tensor, values: Tensor) -> Tensor:
        """The weighted sums over the tiles of each bag, (N, M) and (N, E) -> (B, M, E).

        One product with a matrix that is 0 where a tile is of another bag: beside the head's own products it is
        nothing, and it adds up in float32 whatever the precision.
        """
        own = self.bag_of == torch.arange(len(self.sizes), device=self.tiles.device)[:, None]  # (B, N)
        return ((weight.T[:, None] * own) @ values).transpose(0, 1)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of each bag's values, (N,) -> (B,) float32."""
        return torch.segment_reduce(values.float(), "sum", lengths=self.sizes)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each bag's values, (N,) -> (B,) float32."""
        return torch.segment_reduce(values.float(), "mean", lengths=self.sizes)

    def max(self, values: Tensor) -> Tensor:
        """The highest of each bag's values, (N,) -> (B,) float32."""
        return torch.segment_reduce(values.float(), "max", lengths=self.sizes)

    def ranked(self, values: Tensor) -> Tensor:
        """The tiles bag by bag, in each from the highest of its values (N,) to the lowest: indices (N,)."""
        order = values.argsort(descending=True, stable=True)  # (N,)
        return order[self.bag_of[order].argsort(stable=True)]
