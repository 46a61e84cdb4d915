"""Heads that pool: a bag becomes one vector or one number by a weighted sum, or by its highest tile.

The mean and the maximum are the baselines that attention has to beat; attention and gated attention are those of
Ilse, Tomczak, Welling 2018 (arXiv 1802.04712).
"""

import torch
from torch import Tensor, nn

from papsmear.mil.dropout import Dropout
from papsmear.mil.head import PackedHead
from papsmear.mil.packed import Packed


class Mean(PackedHead):
    """The mean of the tiles' logits: the baseline that attention has to beat. The score is the tile's own logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, 1)

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), tile logits (N,)."""
        score = self.classify(bags.tiles).squeeze(1)  # (N,)
        return bags.mean(score), score


class Max(Mean):
    """The highest of the tiles' logits: a slide is as abnormal as its most abnormal tile. The score is as in Mean."""

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), tile logits (N,)."""
        score = self.classify(bags.tiles).squeeze(1)  # (N,)
        return bags.max(score), score


class Attention(PackedHead):
    """Attention pooling (Ilse et al. 2018, equations 7 and 8).

    Features are first embedded by a layer with ReLU, as in the paper's networks; the score is the attention weight a_k,
    and the weights of a bag add up to 1.
    """

    gated = False

    def __init__(self, width: int, embedding: int = 256, hidden: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU(), Dropout(dropout))
        self.content = nn.Linear(embedding, hidden)  # V of the paper
        if self.gated:
            self.gate = nn.Linear(embedding, hidden)  # U of the paper
        self.weigh = nn.Linear(hidden, 1)  # w of the paper; its bias cancels in the softmax
        self.classify = nn.Linear(embedding, 1)

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), attention (N,)."""
        h = self.embed(bags.tiles)  # (N, E)
        mixed = torch.tanh(self.content(h))  # (N, H)
        if self.gated:
            mixed = mixed * torch.sigmoid(self.gate(h))
        attention = bags.softmax(self.weigh(mixed))  # (N, 1)
        z = bags.pool(attention, h).squeeze(1)  # (B, E)
        return self.classify(z).squeeze(1), attention.squeeze(1)


class GatedAttention(Attention):
    """Gated attention pooling (Ilse et al. 2018, equations 7 and 9); the rest is as in Attention."""

    gated = True
