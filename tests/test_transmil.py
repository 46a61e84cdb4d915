"""TransMIL against its equations written densely in NumPy, and what the order of the tiles does to it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from papsmear.mil.transmil import LOCAL, Layer, TransMIL, TransMILUnordered

WIDTH, EMBEDDING, HEADS, LANDMARKS = 6, 8, 2, 5
Array = NDArray[np.float64]


def bag_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_head(kind: type[TransMIL], landmarks: int = LANDMARKS) -> TransMIL:
    torch.manual_seed(0)
    return kind(WIDTH, EMBEDDING, HEADS, landmarks).double().eval()


def softmax(x: Array) -> Array:
    e = np.exp(x)
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def norm(p: dict[str, Array], name: str, x: Array) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def attend(p: dict[str, Array], name: str, x: Array) -> tuple[Array, Array]:
    """One layer (T, E) -> (T, E), and its attention matrices, mean over heads (T, T)."""
    q, k, v = np.split(x @ p[f"{name}.qkv.weight"].T, 3, axis=1)
    t, d = len(x), EMBEDDING // HEADS
    m = min(LANDMARKS, t)
    segments = [range(i * t // m, -(-(i + 1) * t // m)) for i in range(m)]
    outs, matrices = [], []
    for head in range(HEADS):
        q_h, k_h, v_h = (part[:, d * head : d * head + d] for part in (q, k, v))
        q_m, k_m = (np.array([part[list(segment)].mean(axis=0) for segment in segments]) for part in (q_h, k_h))
        a = softmax(q_m @ k_m.T / np.sqrt(d))
        z, one = a.T / (np.linalg.norm(a, 1) * np.linalg.norm(a, np.inf)), np.eye(m)
        for _ in range(6):
            z = z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z))) / 4
        matrix = softmax(q_h @ k_m.T / np.sqrt(d)) @ z @ softmax(q_m @ k_h.T / np.sqrt(d))
        out = matrix @ v_h
        if f"{name}.local.weight" in p:
            kernel = p[f"{name}.local.weight"][head, 0, :, 0]
            for i in range(t):
                for j in range(LOCAL):
                    if 0 <= i + j - LOCAL // 2 < t:
                        out[i] += kernel[j] * v_h[i + j - LOCAL // 2]
        outs.append(out)
        matrices.append(matrix)
    merged = np.concatenate(outs, axis=1) @ p[f"{name}.out.0.weight"].T + p[f"{name}.out.0.bias"]
    return merged, np.mean(matrices, axis=0)


def encode(p: dict[str, Array], h: Array) -> Array:
    """PPEG, (S * S, E) -> (S * S, E)."""
    side = int(np.sqrt(len(h)))
    out = h.copy()
    for level, size in enumerate((7, 5, 3)):
        kernel, r = p[f"encode.levels.{level}.weight"], size // 2
        for i in range(len(h)):
            y, x = divmod(i, side)
            out[i] += p[f"encode.levels.{level}.bias"]
            for dy in range(-r, r + 1):
                for dx in range(-r, r + 1):
                    if 0 <= y + dy < side and 0 <= x + dx < side:
                        out[i] += kernel[:, 0, dy + r, dx + r] * h[(y + dy) * side + x + dx]
    return out


def by_the_paper(head: TransMIL, bag: Array) -> tuple[float, Array]:
    p = {name: value.numpy() for name, value in head.state_dict().items()}
    h = np.maximum(bag @ p["embed.0.weight"].T + p["embed.0.bias"], 0)
    n = len(h)
    if head.position:
        side = int(np.ceil(np.sqrt(n)))
        h = np.concatenate((h, h[: side * side - n]))
    tokens = np.concatenate((p["class_token"], h))
    tokens = tokens + attend(p, "read", norm(p, "norms.0", tokens))[0]
    if head.position:
        tokens = np.concatenate((tokens[:1], encode(p, tokens[1:])))
    out, matrix = attend(p, "last", norm(p, "norms.1", tokens))
    answer = norm(p, "norms.2", tokens + out)[0]
    score = np.zeros(n)
    for place, weight in enumerate(matrix[0, 1:]):
        score[place % n] += weight
    return float(p["classify.weight"][0] @ answer + p["classify.bias"][0]), score


@pytest.mark.parametrize("n", [1, 2, 9, 23])
@pytest.mark.parametrize("kind", [TransMIL, TransMILUnordered])
def test_it_is_the_equations_of_the_paper(kind: type[TransMIL], n: int) -> None:
    head = a_head(kind)
    with torch.inference_mode():
        logit, score = head(bag_of(n))
    wanted, weights = by_the_paper(head, bag_of(n).numpy())
    assert float(logit) == pytest.approx(wanted, abs=1e-9)
    np.testing.assert_allclose(score.numpy(), weights, atol=1e-9)


@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize("n", [1, 5, 60])
def test_the_first_row_alone_is_that_of_all(position: bool, n: int) -> None:
    torch.manual_seed(0)
    layer = Layer(EMBEDDING, HEADS, LANDMARKS, 0.1, position).double().eval()
    tokens = torch.randn(n, EMBEDDING, dtype=torch.float64)
    torch.testing.assert_close(layer.first(tokens)[0], layer(tokens)[0])


def shift_by_order(head: TransMIL, n: int) -> float:
    """How far the logit moves when the tiles are shuffled, as a share of how far it lies apart between slides."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    bags = [bag_of(n, seed) + bag_of(1, 100 + seed) for seed in range(10)]  # each slide around a mean of its own
    with torch.inference_mode():
        logits = torch.stack([head(bag)[0] for bag in bags])
        shuffled = torch.stack([head(bag[order])[0] for bag in bags])
    return float((logits - shuffled).std() / logits.std())


def test_with_positions_the_order_matters() -> None:
    assert shift_by_order(a_head(TransMIL, 64), 40) > 0.1


def test_without_positions_the_order_matters_only_through_the_landmarks() -> None:
    head = a_head(TransMILUnordered, 64)
    assert shift_by_order(head, 40) < 1e-9
    assert shift_by_order(head, 63) < 1e-9  # and the class token make 64
    assert 1e-9 < shift_by_order(head, 64) < 0.05
    assert 1e-9 < shift_by_order(head, 1000) < 0.05
