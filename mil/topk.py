"""Top-k selection: a slide is judged by its k tiles of highest score alone.

Positive cells are a handful among thousands of tiles, and a head that pools them all learns little of so few. The
study's first remedy (Stegmüller et al. 2023, arXiv 2302.05195, as its journal version is reported by third parties) is
to keep the k = 8 most suspicious tiles of a slide, ranked by the same encoder and classifier.
"""

import torch
from torch import Tensor

from papsmear.errors import UsageError
from papsmear.mil.head import CrossEntropy, Head


class TopK(Head):
    """A head that first scores every tile, and then sees the `k` of highest score as if they were the slide.

    A tile's score is its logit as a slide of its own, in every head. It is not its attention: that tells how much a
    tile is of the answer, not which answer, and a loss of single tiles cannot teach it, since the one tile of a bag
    always weighs 1. Ranking has no dropout and no gradient, so a slide's tiles are chosen alike in training and in
    diagnosis. The tiles keep their order, which TransMIL reads.
    """

    def __init__(self, head: Head, k: int) -> None:
        super().__init__()
        if k < 1:
            raise UsageError(f"model.top_k={k}: a slide is judged by at least 1 tile; null for all")
        self.head, self.k = head, k

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit () of the k tiles, score (N,) of all."""
        score = self._scores(bag)
        logit: Tensor = self.head(self._kept(bag, score))[0]
        return logit, score

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """The head's own loss () of the k tiles."""
        return self.head.loss(self._kept(bag, self._scores(bag)), label, cross_entropy)

    def _kept(self, bag: Tensor, score: Tensor) -> Tensor:
        """The k tiles of highest score (k, D), of equal scores the first; all, where there are no more."""
        best = score.argsort(descending=True, stable=True)[: self.k]  # (k,)
        return bag[best.sort().values]

    @torch.no_grad()
    def _scores(self, bag: Tensor) -> Tensor:
        """(N, D) -> score (N,) of all tiles, as in evaluation."""
        training = self.head.training
        self.head.eval()
        score = self.head.alone(bag)
        self.head.train(training)
        return score
