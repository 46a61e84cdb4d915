"""CLAM: gated attention whose best and worst tiles train a clustering of the tiles' embeddings.

Lu, Williamson, Chen, Chen, Barbieri, Mahmood 2021, Nature Biomedical Engineering 5, 555 (Methods; arXiv 2004.09666),
for two classes. The clustering takes the class of the slide's label only: the paper adds the other classes where they
exclude each other (subtypes), which abnormal and normal cells on one slide do not.
"""

import torch
from torch import Tensor, nn

from papsmear.mil.head import CrossEntropy, Head


class ClamSB(Head):
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
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU(), nn.Dropout(dropout))  # W_1
        self.content = nn.Sequential(nn.Linear(embedding, hidden), nn.Tanh(), nn.Dropout(dropout))  # V_a
        self.gate = nn.Sequential(nn.Linear(embedding, hidden), nn.Sigmoid(), nn.Dropout(dropout))  # U_a
        self.weigh = nn.Linear(hidden, self.branches)  # W_a, a row for each branch
        self.classify = nn.Linear(embedding, self.branches)  # W_c, a row for each branch
        self.cluster = nn.ModuleList(nn.Linear(embedding, 2) for _ in range(2))  # W_inst of each class
        self.sample, self.slide_weight = sample, slide_weight

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), attention of the positive class (N,)."""
        h, attention = self._attend(bag)
        return self._logit(h, attention), attention[-1]

    def loss(self, bag: Tensor, label: int, cross_entropy: CrossEntropy) -> Tensor:
        """c_1 times the slide's loss plus (1 - c_1) times the clustering's (L_total of the paper)."""
        h, attention = self._attend(bag)
        slide = cross_entropy(self._logit(h, attention))
        clustering = self._clustering(h, attention[label % self.branches], label)
        return self.slide_weight * slide + (1 - self.slide_weight) * clustering

    def _attend(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> embeddings h (N, E), attention of each branch (M, N)."""
        h = self.embed(bag)  # (N, E)
        weight = self.weigh(self.content(h) * self.gate(h))  # (N, M)
        return h, torch.softmax(weight, dim=0).T

    def _logit(self, h: Tensor, attention: Tensor) -> Tensor:
        """The logit () of the positive class; with two branches the softmax of their two scores, as one logit."""
        z = attention @ h  # (M, E)
        s = (self.classify.weight * z).sum(dim=1) + self.classify.bias  # (M,)
        return s[0] if self.branches == 1 else s[1] - s[0]

    def _clustering(self, h: Tensor, attention: Tensor, label: int) -> Tensor:
        """The loss () of the label's clustering: the tiles of highest attention are 1, those of lowest are 0."""
        k = min(self.sample, len(h) // 2)
        if k == 0:
            return h.new_zeros(())
        order = attention.argsort(descending=True)  # (N,)
        logits = self.cluster[label](h[torch.cat((order[:k], order[-k:]))])  # (2k, 2)
        pseudo = torch.arange(2 * k, device=h.device).lt(k).long()  # (2k,)
        return smooth_svm(logits, pseudo)


class ClamMB(ClamSB):
    """CLAM with an attention branch for each class; the score is the attention of the positive class's."""

    branches = 2


def smooth_svm(logits: Tensor, labels: Tensor) -> Tensor:
    """The smooth top-1 SVM loss with margin and temperature 1 (Berrada, Zisserman, Kumar 2018, arXiv 1802.07595).

    Log of the sum over classes j of exp(margin (j is not y) + s_j - s_y), which is cross-entropy with the wrong
    classes' logits raised by the margin. (N, C), (N,) -> mean ().
    """
    margin = 1 - nn.functional.one_hot(labels, logits.shape[1])  # (N, C)
    return nn.functional.cross_entropy(logits + margin, labels)
