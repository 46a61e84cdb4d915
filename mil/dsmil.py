"""DSMIL: a stream that finds the critical tile, and a stream that weighs the others by their likeness to it.

Li, Li, Eliceiri 2021, CVPR (arXiv 2011.08939), section 3.2.
"""

import torch
from torch import Tensor, nn

from papsmear.mil.head import CrossEntropy, Head


class DSMIL(Head):
    """Dual-stream MIL. The score is U(h_i, h_m), a tile's likeness to the critical one; scores add up to 1.

    As in the authors' code, the likeness is divided by the square root of the queries' width before its softmax, and
    both streams are trained, with half of the loss each. The logit is the mean of the two streams'.

    Args:
        width: D, the width of the features.
        query: Width of the queries that are compared.
    """

    def __init__(self, width: int, query: int = 128) -> None:
        super().__init__()
        self.classify_tile = nn.Linear(width, 1)  # W_0 of the paper
        self.query = nn.Linear(width, query)  # W_q
        self.value = nn.Linear(width, width)  # W_v
        self.classify = nn.Linear(width, 1)  # W_b

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), attention (N,)."""
        highest, pooled, attention = self._streams(bag)
        return (highest + pooled) / 2, attention

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """The mean of both streams' losses ()."""
        highest, pooled, _ = self._streams(bag)
        return (cross_entropy(highest) + cross_entropy(pooled)) / 2

    def _streams(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) -> logits of the critical tile () and of the pooled bag (), attention (N,)."""
        tile_logits = self.classify_tile(bag).squeeze(1)  # (N,)
        critical = tile_logits.argmax()
        q = self.query(bag)  # (N, Q)
        attention = torch.softmax(q @ q[critical] / q.shape[1] ** 0.5, dim=0)  # (N,)
        b = self.value(attention @ bag)  # (D,), the weighted mean of values: weights add up to 1, so it is one product
        return tile_logits[critical], self.classify(b).squeeze(0), attention
