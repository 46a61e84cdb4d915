"""Nyström attention: softmax attention over tens of thousands of tokens in time and memory linear in their number.

Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh 2021, AAAI (arXiv 2102.03902). With landmarks q~, k~ (means over m
segments of the tokens), softmax(q k^T) is approximated by softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T).
Read from the right, each product is plain attention with m queries or m keys, which torch does without ever holding an
(N, m) matrix. H is the number of heads, N of tokens, d the width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


def segment_means(x: Tensor, landmarks: int) -> Tensor:
    """(H, N, d) -> (H, m, d), means over m segments of the tokens (equation 11); m is at most N.

    Where m does not divide N, neighbouring segments share a token; the paper pads the tokens instead, which would
    then be attended to.
    """
    return nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), min(landmarks, x.shape[1])).transpose(1, 2)


def iterative_pinv(a: Tensor, iterations: int) -> Tensor:
    """The Moore-Penrose inverse of matrices (H, m, m), by an iteration of third order (equation 14 and lemma 1)."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    norms = a.abs().sum(dim=-2).amax(dim=-1) * a.abs().sum(dim=-1).amax(dim=-1)  # (H,), of columns and of rows
    z = a.transpose(1, 2) / norms[:, None, None]
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z


class Landmarks(NamedTuple):
    """What the approximation holds of a sequence: q~ and k~ (H, m, d), and pinv(softmax(q~ k~^T)) (H, m, m)."""

    q: Tensor
    k: Tensor
    inverse: Tensor


def landmarks_of(q: Tensor, k: Tensor, count: int, iterations: int = 6) -> Landmarks:
    """The `count` landmarks of queries and keys (H, N, d); six iterations, as the paper takes."""
    q_means, k_means = segment_means(q, count), segment_means(k, count)
    return Landmarks(q_means, k_means, iterative_pinv(_softmax(q_means, k_means), iterations))


def nystrom_attention(q: Tensor, k: Tensor, v: Tensor, landmarks: Landmarks) -> Tensor:
    """Approximates softmax(q k^T / sqrt(d)) v (equation 13) for some queries (H, n, d), all keys and values (H, N, d).

    -> (H, n, d).
    """
    attention = nn.functional.scaled_dot_product_attention
    return attention(q, landmarks.k, landmarks.inverse @ attention(landmarks.q, k, v))


def nystrom_weights(q: Tensor, k: Tensor, landmarks: Landmarks) -> Tensor:
    """The weights (H, N) that `nystrom_attention` gives the values in the answer to one query (H, 1, d)."""
    rows = _softmax(q, landmarks.k) @ landmarks.inverse  # (H, 1, m)
    # A head at a time: (m, N) of all heads together would take gigabytes.
    return torch.cat([row @ _softmax(q_h, k_h) for row, q_h, k_h in zip(rows, landmarks.q, k, strict=True)])


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d))."""
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
