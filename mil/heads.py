"""Multiple-instance heads: from a bag of tile features to one logit for the slide and a score for each tile.

A head is a module `Head(width, **settings)` with `forward(bag (N, D)) -> (logit (), score (N,))`, N the tiles of a
slide and D the width of their features; a higher score means that the tile spoke more for the head's answer. Bags go
in one at a time, so there is no padding to get wrong. Adding a head is a class and a line in `HEADS`.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from papsmear.errors import UsageError


class GatedAttention(nn.Module):
    """Gated attention pooling (Ilse, Tomczak, Welling 2018, arXiv 1802.04712, equations 7 and 9).

    Features are first embedded by a layer with ReLU, as in the paper's networks; the score is the attention weight a_k,
    and the weights of a bag add up to 1.
    """

    def __init__(self, width: int, embedding: int = 256, hidden: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU(), nn.Dropout(dropout))
        self.content = nn.Linear(embedding, hidden)  # V of the paper
        self.gate = nn.Linear(embedding, hidden)  # U of the paper
        self.weigh = nn.Linear(hidden, 1)  # w of the paper; its bias cancels in the softmax
        self.classify = nn.Linear(embedding, 1)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), attention (N,)."""
        h = self.embed(bag)  # (N, E)
        gated = torch.tanh(self.content(h)) * torch.sigmoid(self.gate(h))  # (N, H)
        attention = torch.softmax(self.weigh(gated).squeeze(1), dim=0)  # (N,)
        z = attention @ h  # (E,)
        return self.classify(z).squeeze(0), attention


class Mean(nn.Module):
    """The mean of the tiles' logits: the baseline that attention has to beat. The score is the tile's own logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, 1)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), tile logits (N,)."""
        score = self.classify(bag).squeeze(1)  # (N,)
        return score.mean(), score


HEADS: dict[str, type[nn.Module]] = {"gated_attention": GatedAttention, "mean": Mean}


class Standardised(nn.Module):
    """A head behind a standardisation of its features, so that one learning rate suits every encoder.

    Features of frozen encoders differ in scale by orders of magnitude, around a mean that all tiles share. `mean`
    and `std` (D,) are measured on the training bags and travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) of any float type -> logit (), score (N,), both float32; ValueError for a bag without tiles."""
        if len(bag) == 0:
            raise ValueError("a bag without tiles has no diagnosis")
        return cast(tuple[Tensor, Tensor], self.head((bag.float() - self.mean) / self.std))


def build_head(name: str, width: int, settings: dict[str, Any]) -> Standardised:
    """The head called `name` for features of `width`; UsageError where there is no such head or setting."""
    if name not in HEADS:
        raise UsageError(f"head {name!r}: there is no such head; choose one of {', '.join(HEADS)}")
    try:
        return Standardised(HEADS[name](width, **settings), width)
    except TypeError as error:
        raise UsageError(f"head {name}: head_args {settings} do not fit: {error}") from error
