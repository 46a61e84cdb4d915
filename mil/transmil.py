"""TransMIL: a class token that reads the bag through two layers of Nyström attention.

Shao, Bian, Chen, Wang, Zhang, Ji, Zhang 2021, NeurIPS (arXiv 2106.00908), in the sizes of the authors' code. Two parts
of it read the order of the tiles: the pyramid position encoding (PPEG), which lays the bag out as a square, and the
33-wide convolution of the values along the tokens in each attention. "Without positional encoding" is without
both. What then still depends on the order are the landmarks, means over neighbouring tokens: with no more tokens than
landmarks the answer is the same for every order, beyond that nearly.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from papsmear.mil.dropout import Dropout
from papsmear.mil.head import Head
from papsmear.mil.nystrom import landmarks_of, nystrom_attention, nystrom_weights

LOCAL = 33  # tokens that the convolution of the values spans


class TransMIL(Head):
    """TransMIL with positional encoding. The score is the class token's attention in the last layer, mean over heads.

    The score of a tile that fills up the square a second time is the sum over its two places. Nyström's weights
    add up to nearly 1, and single ones may lie a little below 0.

    Args:
        width: D, the width of the features.
        embedding: Width of the tokens.
        heads: Attention heads; divides the embedding.
        landmarks: Landmarks of the Nyström attention.
        dropout: After each attention.
    """

    position = True

    def __init__(
        self, width: int, embedding: int = 512, heads: int = 8, landmarks: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if embedding % heads:
            raise ValueError(f"embedding {embedding} is not a multiple of heads {heads}")
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, embedding))
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(3))
        self.read, self.last = (Layer(embedding, heads, landmarks, dropout, self.position) for _ in range(2))
        if self.position:
            self.encode = PPEG(embedding)
        self.classify = nn.Linear(embedding, 1)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logit (), attention of the class token (N,)."""
        n = len(bag)
        h = self.embed(bag)  # (N, E)
        if self.position:
            h = torch.cat((h, h[: math.ceil(n**0.5) ** 2 - n]))  # (S * S, E), the first tiles once more
        tokens = torch.cat((self.class_token, h))  # (T, E)
        tokens = tokens + self.read(self.norms[0](tokens))
        if self.position:
            tokens = torch.cat((tokens[:1], self.encode(tokens[1:])))
        answer, weights = self.last.first(self.norms[1](tokens))  # (E,), (T,)
        logit = self.classify(self.norms[2](tokens[0] + answer)).squeeze(0)
        score, again = weights[1 : n + 1], weights[n + 1 :]  # (N,), (S * S - N,)
        return logit, score + nn.functional.pad(again, (0, n - len(again)))

    def alone(self, tiles: Tensor) -> Tensor:
        """See `Head.alone`; torch's fused attention has no `vmap`."""
        with sdpa_kernel(SDPBackend.MATH):
            return super().alone(tiles)


class TransMILUnordered(TransMIL):
    """TransMIL without positional encoding: neither the pyramid nor the convolution of the values."""

    position = False


class Layer(nn.Module):
    """Multi-head Nyström attention, with the convolution of the values where positions count."""

    def __init__(self, embedding: int, heads: int, landmarks: int, dropout: float, position: bool) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.qkv = nn.Linear(embedding, 3 * embedding, bias=False)
        self.out = nn.Sequential(nn.Linear(embedding, embedding), Dropout(dropout))
        self.position = position
        if position:  # one kernel a head, for all of its features
            self.local = nn.Conv2d(heads, heads, (LOCAL, 1), padding=(LOCAL // 2, 0), groups=heads, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, E) -> (T, E)."""
        q, k, v = self._split(tokens)
        mixed = nystrom_attention(q, k, v, landmarks_of(q, k, self.landmarks))  # (H, T, d)
        if self.position:
            mixed = mixed + self.local(v)
        return self._merge(mixed)

    def first(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(T, E) -> the first row of `forward` (E,) alone, and the attention that made it (T,), mean over heads.

        The attention explains the answer and is not learnt from: it has no gradient.
        """
        q, k, v = self._split(tokens)
        landmarks, query = landmarks_of(q, k, self.landmarks), q[:, :1]
        mixed = nystrom_attention(query, k, v, landmarks)  # (H, 1, d)
        if self.position:
            mixed = mixed + self.local(v[:, : LOCAL // 2 + 1])[:, :1]
        with torch.no_grad():
            weights = nystrom_weights(query, k, landmarks).mean(dim=0)
        return self._merge(mixed)[0], weights

    def _split(self, tokens: Tensor) -> Tensor:
        """(T, E) -> queries, keys and values (3, H, T, d)."""
        qkv: Tensor = self.qkv(tokens)  # (T, 3 E)
        return qkv.reshape(len(tokens), 3, self.heads, -1).permute(1, 2, 0, 3).contiguous()

    def _merge(self, mixed: Tensor) -> Tensor:
        """(H, T, d) -> (T, E)."""
        out: Tensor = self.out(mixed.transpose(0, 1).flatten(1))
        return out


class PPEG(nn.Module):
    """Pyramid position encoding generator: depth-wise convolutions of 7, 5 and 3 over the square, added to it."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Conv2d(embedding, embedding, size, padding=size // 2, groups=embedding) for size in (7, 5, 3)
        )

    def forward(self, h: Tensor) -> Tensor:
        """(S * S, E), row by row -> (S * S, E)."""
        side = math.isqrt(len(h))
        square = h.T.reshape(-1, side, side)  # (E, S, S)
        encoded = torch.stack([square, *(level(square) for level in self.levels)]).sum(dim=0)
        return encoded.flatten(1).T
