"""Nyström attention against plain softmax attention, and its parts against their formulas in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from papsmear.mil.nystrom import iterative_pinv, landmarks_of, nystrom_attention, nystrom_weights, segment_means


def qkv(n: int, scale: float = 1.0) -> Tensor:
    """(3, H, N, d) float64."""
    return scale * torch.randn(3, 2, n, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def softmax(q: Tensor, k: Tensor) -> Tensor:
    e = torch.exp(q @ k.mT / q.shape[-1] ** 0.5)
    return e / e.sum(dim=-1, keepdim=True)


def test_segment_means_are_means_over_the_segments() -> None:
    x = qkv(12)[0]
    wanted = torch.stack([x[:, 3 * i : 3 * i + 3].mean(dim=1) for i in range(4)], dim=1)
    torch.testing.assert_close(segment_means(x, 4), wanted)
    seven = segment_means(x[:, :7], 4)  # from floor(7 i / 4) to ceil(7 (i + 1) / 4)
    wanted = torch.stack([x[:, a:b].mean(dim=1) for a, b in ((0, 2), (1, 4), (3, 6), (5, 7))], dim=1)
    torch.testing.assert_close(seven, wanted)
    torch.testing.assert_close(segment_means(x, 99), x)


def test_the_iteration_finds_the_pseudo_inverse() -> None:
    a = torch.softmax(qkv(9)[0] @ qkv(9)[1].mT + 4 * torch.eye(9), dim=-1)
    for matrix, iterations in ((a, 30), (a[:, [0, 1, 1, 3, 4, 5, 6, 7, 8]], 12)):  # two equal rows have no inverse
        wanted = torch.from_numpy(np.linalg.pinv(matrix.numpy(), rcond=1e-9))
        torch.testing.assert_close(iterative_pinv(matrix, iterations), wanted, atol=1e-6, rtol=1e-6)


def test_one_step_of_the_iteration_is_that_of_the_paper() -> None:
    a = softmax(*qkv(5)[:2])
    for found, a_h in zip(iterative_pinv(a, 1).numpy(), a.numpy(), strict=True):
        z = a_h.T / (np.linalg.norm(a_h, 1) * np.linalg.norm(a_h, np.inf))
        one = np.eye(5)
        wanted = z @ (13 * one - a_h @ z @ (15 * one - a_h @ z @ (7 * one - a_h @ z))) / 4
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_with_as_many_landmarks_as_tokens_it_is_softmax_attention(n: int) -> None:
    q, k, v = qkv(n, 2)
    found = nystrom_attention(q, k, v, landmarks_of(q, k, 64, iterations=30))
    torch.testing.assert_close(found, softmax(q, k) @ v, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("n", [6, 64, 101])
def test_it_is_the_product_of_three_matrices(n: int) -> None:
    q, k, v = qkv(n)
    landmarks = landmarks_of(q, k, 6)
    q_m, k_m = segment_means(q, 6), segment_means(k, 6)
    matrix = softmax(q, k_m) @ iterative_pinv(softmax(q_m, k_m), 6) @ softmax(q_m, k)  # (H, N, N)
    torch.testing.assert_close(nystrom_attention(q, k, v, landmarks), matrix @ v)
    torch.testing.assert_close(nystrom_attention(q[:, 2:4], k, v, landmarks), matrix[:, 2:4] @ v)
    torch.testing.assert_close(nystrom_weights(q[:, :1], k, landmarks), matrix[:, 0])


def test_a_few_landmarks_come_close_to_softmax_attention_where_neighbours_are_alike() -> None:
    """Of tokens without any likeness no mean over a segment tells anything; those of tissue come in runs."""
    phase = 2 * torch.pi * torch.rand(3, 2, 1, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frequency = torch.arange(1, 9)
    q, k, v = torch.sin(torch.linspace(0, 2, 1000, dtype=torch.float64)[:, None] * frequency + phase)
    exact = softmax(q, k) @ v
    errors = []
    for m in (4, 16, 64):
        found = nystrom_attention(q, k, v, landmarks_of(q, k, m))
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.02
