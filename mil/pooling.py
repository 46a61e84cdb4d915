"""Heads that pool: a bag becomes one vector or one number by a weighted sum, or by its highest tile.

The mean and the maximum are the baselines that attention has to beat; attention and gated attention are those of
Ilse, Tomczak, Welling 2018 (arXiv 1802.04712).
"""

import torch
from torch import Tensor, nn

from papsmear.mil.dropout import Dropout
from papsmear.mil.gated import gated
from papsmear.mil.head import PackedHead
from papsmear.mil.packed import Packed


class Mean(PackedHead):
    """The mean of the tiles' logits: the baseline that attention has to beat. The score is the tile's own logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, 1)

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), tile logits (N,)."""
        score = self.alone(bags.tiles)  # (N,)
        return bags.mean(score), score

    def alone(self, tiles: Tensor) -> Tensor:
        """See `Head.alone`."""
        logits: Tensor = self.classify(tiles).squeeze(1)
        return logits


class Max(Mean):
    """The highest of the tiles' logits: a slide is as abnormal as its most abnormal tile. The score is as in Mean."""

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), tile logits (N,)."""
        score = self.alone(bags.tiles)  # (N,)
        return bags.max(score), score


class Attention(PackedHead):
    """Attention pooling (Ilse et al. 2018, equations 7 and 8).

    Features are first embedded by a layer with ReLU, as in the paper's networks; the score is the attention weight a_k,
    and the weights of a bag add up to 1.

    Args:
        width: D, the width of the features.
        embedding: Width of the embedding; null pools the features themselves, which is quicker.
        hidden: Width of the attention network.
        dropout: After the embedding.
    """

    gated = False

    def __init__(self, width: int, embedding: int | None = 256, hidden: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential()
        if embedding is not None:
            self.embed.extend((nn.Linear(width, embedding), nn.ReLU(), Dropout(dropout)))
            width = embedding
        self.content = nn.Linear(width, hidden)  # V of the paper
        if self.gated:
            self.gate = nn.Linear(width, hidden)  # U of the paper
        self.weigh = nn.Linear(hidden, 1)  # w of the paper; its bias cancels in the softmax
        self.classify = nn.Linear(width, 1)

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), attention (N,)."""
        h = self.embed(bags.tiles)  # (N, E), E = D without an embedding
        attention = bags.softmax(self.attend(h)).squeeze(1)  # (N,)
        # To pool the tiles' logits is to classify the pooled tiles (the weights add up to 1), and pools one number each
        return bags.sum(attention * self.classify(h).squeeze(1)), attention

    def attend(self, h: Tensor) -> Tensor:
        """The attention of tiles before the softmax, (N, E) -> (N, 1)."""
        weight: Tensor = self.weigh(torch.tanh(self.content(h)))
        return weight

    def alone(self, tiles: Tensor) -> Tensor:
        """See `Head.alone`; a single tile's attention is 1."""
        logits: Tensor = self.classify(self.embed(tiles)).squeeze(1)
        return logits


class GatedAttention(Attention):
    """Gated attention pooling (Ilse et al. 2018, equations 7 and 9); the rest is as in Attention."""

    gated = True

    def attend(self, h: Tensor) -> Tensor:
        """See `Attention.attend`."""
        return gated(h, self.content, self.gate, self.weigh)
