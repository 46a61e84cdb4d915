"""Heads that pool: a bag becomes one vector or one number by a weighted sum, or by its highest tile.

The mean and the maximum are the baselines that attention has to beat; attention and gated attention are those of
Ilse, Tomczak, Welling 2018 (arXiv 1802.04712).
"""

import torch
from torch import Tensor, nn

from papsmear.mil.head import Head


class Mean(Head):
    """The mean of the tiles' logits: the baseline that attention has to beat. The score is the tile's own logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, 1)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), tile logits (N,)."""
        score = self.classify(bag).squeeze(1)  # (N,)
        return score.mean(), score


class Max(Mean):
    """The highest of the tiles' logits: a slide is as abnormal as its most abnormal tile. The score is as in Mean."""

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), tile logits (N,)."""
        score = self.classify(bag).squeeze(1)  # (N,)
        return score.max(), score


class Attention(Head):
    """Attention pooling (Ilse et al. 2018, equations 7 and 8).

    Features are first embedded by a layer with ReLU, as in the paper's networks; the score is the attention weight a_k,
    and the weights of a bag add up to 1.
    """

    gated = False

    def __init__(self, width: int, embedding: int = 256, hidden: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU(), nn.Dropout(dropout))
        self.content = nn.Linear(embedding, hidden)  # V of the paper
        if self.gated:
            self.gate = nn.Linear(embedding, hidden)  # U of the paper
        self.weigh = nn.Linear(hidden, 1)  # w of the paper; its bias cancels in the softmax
        self.classify = nn.Linear(embedding, 1)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), attention (N,)."""
        h = self.embed(bag)  # (N, E)
        mixed = torch.tanh(self.content(h))  # (N, H)
        if self.gated:
            mixed = mixed * torch.sigmoid(self.gate(h))
        attention = torch.softmax(self.weigh(mixed).squeeze(1), dim=0)  # (N,)
        z = attention @ h  # (E,)
        return self.classify(z).squeeze(0), attention


class GatedAttention(Attention):
    """Gated attention pooling (Ilse et al. 2018, equations 7 and 9); the rest is as in Attention."""

    gated = True
