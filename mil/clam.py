"""CLAM: gated attention whose best and worst tiles train a clustering of the tiles' embeddings.

Lu, Williamson, Chen, Chen, Barbieri, Mahmood 2021, Nature Biomedical Engineering 5, 555 (Methods; arXiv 2004.09666),
for two classes. The clustering takes the class of the slide's label only: the paper adds the other classes where they
exclude each other (subtypes), which abnormal and normal cells on one slide do not.
"""

import torch
from torch import Tensor, nn

from papsmear.mil.dropout import Dropout
from papsmear.mil.head import CrossEntropies, PackedHead
from papsmear.mil.packed import Packed


class ClamSB(PackedHead):
    """CLAM with a single attention branch for both classes. The score is the attention a_k; they add up to 1.

    Args:
        width: D, the width of the features.
        embedding: Width of W_1, the embedding that is pooled and clustered.
        hidden: Width of the attention network.
        dropout: After the embedding, and in the attention network.
        sample: B of the paper: how many of the tiles of highest, and of lowest, attention are clustered (at most half
            of the bag each; a bag of one tile is not clustered).
        slide_weight: c_1 of the paper, the share of the slide's loss; the clustering's has the rest.
    """

    branches = 1

    def __init__(
        self,
        width: int,
        embedding: int = 512,
        hidden: int = 256,
        dropout: float = 0.25,
        sample: int = 8,
        slide_weight: float = 0.7,
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU(), Dropout(dropout))  # W_1
        self.content = nn.Sequential(nn.Linear(embedding, hidden), nn.Tanh(), Dropout(dropout))  # V_a
        self.gate = nn.Sequential(nn.Linear(embedding, hidden), nn.Sigmoid(), Dropout(dropout))  # U_a
        self.weigh = nn.Linear(hidden, self.branches)  # W_a, a row for each branch
        self.classify = nn.Linear(embedding, self.branches)  # W_c, a row for each branch
        self.cluster = nn.ModuleList(nn.Linear(embedding, 2) for _ in range(2))  # W_inst of each class
        self.sample, self.slide_weight = sample, slide_weight

    def forward_packed(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Logits (B,), attention of the positive class (N,)."""
        h, attention = self._attend(bags)
        return self._logits(h, attention, bags), attention[:, -1]

    def losses(self, bags: Packed, labels: Tensor, cross_entropy: CrossEntropies) -> Tensor:
        """c_1 times the slide's loss plus (1 - c_1) times the clustering's (L_total of the paper), (B,)."""
        h, attention = self._attend(bags)
        slide = cross_entropy(self._logits(h, attention, bags), labels)  # (B,)
        branch = (labels % self.branches)[bags.bag_of]  # (N,), that of the label
        clustering = self._clustering(h, attention.gather(1, branch[:, None]).squeeze(1), bags, labels)
        return self.slide_weight * slide + (1 - self.slide_weight) * clustering

    def _attend(self, bags: Packed) -> tuple[Tensor, Tensor]:
        """Embeddings h (N, E), attention of each branch (N, M)."""
        h = self.embed(bags.tiles)  # (N, E)
        return h, bags.softmax(self.weigh(self.content(h) * self.gate(h)))

    def _logits(self, h: Tensor, attention: Tensor, bags: Packed) -> Tensor:
        """Logits of the positive class (B,); with two branches the softmax of their two scores, as one logit."""
        return self._answer(bags.pool(attention, h))

    def _answer(self, z: Tensor) -> Tensor:
        """Logits (B,) of the branches' pooled embeddings (B, M, E)."""
        s = (self.classify.weight * z).sum(dim=2) + self.classify.bias  # (B, M)
        return s[:, 0] if self.branches == 1 else s[:, 1] - s[:, 0]

    def alone(self, tiles: Tensor) -> Tensor:
        """See `Head.alone`; a single tile's attention is 1 in each branch."""
        return self._answer(self.embed(tiles)[:, None])

    def _clustering(self, h: Tensor, attention: Tensor, bags: Packed, labels: Tensor) -> Tensor:
        """The losses of the labels' clusterings (B,): a bag's tiles of highest attention are 1, of lowest are 0."""
        k = (bags.sizes // 2).clamp(max=self.sample)  # (B,)
        high = bags.place < k[bags.bag_of]  # (N,), of the tiles in the order of their attention
        chosen = (high | (bags.place >= (bags.sizes - k)[bags.bag_of])).nonzero().squeeze(1)  # (C,), 2k of each bag
        bag_of, tiles = bags.bag_of[chosen], h[bags.ranked(attention)[chosen]]  # (C,), (C, E)
        losses = torch.zeros(len(k), device=h.device)
        for label, cluster in enumerate(self.cluster):
            own = labels[bag_of] == label  # (C,)
            if own.any():  # a class that no slide is of learns nothing
                loss = smooth_svm(cluster(tiles[own]).float(), high[chosen[own]].long())
                losses = losses.index_add(0, bag_of[own], loss / (2 * k[bag_of[own]]))
        return losses


class ClamMB(ClamSB):
    """CLAM with an attention branch for each class; the score is the attention of the positive class's."""

    branches = 2


def smooth_svm(logits: Tensor, labels: Tensor) -> Tensor:
    """The smooth top-1 SVM loss with margin and temperature 1 (Berrada, Zisserman, Kumar 2018, arXiv 1802.07595).

    Log of the sum over classes j of exp(margin (j is not y) + s_j - s_y), which is cross-entropy with the wrong
    classes' logits raised by the margin. (N, C), (N,) -> (N,).
    """
    margin = 1 - nn.functional.one_hot(labels, logits.shape[1])  # (N, C)
    return nn.functional.cross_entropy(logits + margin, labels, reduction="none")
