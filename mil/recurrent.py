"""The progressive system's head: a recurrent network reads the most suspicious tiles, from the highest score down.

Cheng et al. 2021, Nature Communications 12, 5639. There the tiles' scores come from a classifier trained on annotated
cells. Here there is no such annotation, so the head has a tile classifier of its own (linear), trained as in
Campanella et al. 2019: the slide's highest tile answers for the slide.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papsmear.mil.head import CrossEntropy, Head


class Recurrent(Head):
    """Networks of one recurrent layer with ReLU, each over its top k tiles; the score is the tile's own logit.

    The probability is the mean of the networks'. In training the order of the top tiles is rearranged now and then,
    as in the paper, so that a network does not lean on the order of scores alone.

    Args:
        width: D, the width of the features.
        tops: k of each network; a bag with fewer tiles is read whole.
        hidden: Units of the recurrent layer.
        rearrange: Probability of rearranging the order in training.
    """

    def __init__(self, width: int, tops: Sequence[int] = (10,), hidden: int = 512, rearrange: float = 0.5) -> None:
        super().__init__()
        if not tops or min(tops) < 1:
            raise ValueError(f"tops {list(tops)}: each network reads at least 1 tile")
        self.classify_tile = nn.Linear(width, 1)
        self.networks = nn.ModuleList(nn.RNN(width, hidden, nonlinearity="relu") for _ in tops)
        self.classify = nn.ModuleList(nn.Linear(hidden, 1) for _ in tops)
        self.tops, self.rearrange = tuple(tops), rearrange

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), tile logits (N,)."""
        logits, score = self._judge(bag)
        return _together(logits), score

    def alone(self, tiles: Tensor) -> Tensor:
        """See `Head.alone`; torch has no `vmap` of recurrent layers."""
        states = [network(tiles[None])[1][0] for network in self.networks]  # (N, H) each
        return _together(torch.cat([classify(h).T for h, classify in zip(states, self.classify, strict=True)]))

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """Half the loss of the highest tile, half the mean of the networks' losses: each learns for itself."""
        logits, score = self._judge(bag)
        networks = torch.stack([cross_entropy(logit) for logit in logits]).mean()
        return (cross_entropy(score.max()) + networks) / 2

    def _judge(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit of each network (K,), tile logits (N,)."""
        score = self.classify_tile(bag).squeeze(1)  # (N,)
        order = score.argsort(descending=True)  # (N,)
        logits = []
        for top, network, classify in zip(self.tops, self.networks, self.classify, strict=True):
            sequence = bag[order[:top]]  # (k, D)
            if self.training and float(torch.rand(())) < self.rearrange:
                sequence = sequence[torch.randperm(len(sequence)).to(bag.device)]
            _, state = network(sequence)  # (1, H)
            logits.append(classify(state).squeeze())
        return torch.stack(logits), score


class RecurrentEnsemble(Recurrent):
    """The paper's ensemble of six: two networks each over the top 10, 20 and 30 tiles."""

    def __init__(
        self,
        width: int,
        tops: Sequence[int] = (10, 10, 20, 20, 30, 30),
        hidden: int = 512,
        rearrange: float = 0.5,
    ) -> None:
        super().__init__(width, tops, hidden, rearrange)


def _together(logits: Tensor) -> Tensor:
    """The logit (...) of the mean probability of networks with logits (K, ...)."""
    positive = torch.logsumexp(nn.functional.logsigmoid(logits), dim=0)  # log of the sum of probabilities
    negative = torch.logsumexp(nn.functional.logsigmoid(-logits), dim=0)
    return positive - negative
