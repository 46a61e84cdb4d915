"""The attention network of gated attention in one pass over blocks of tiles, whose values in between stay in the cache.

In bfloat16 its products are so quick that the elementwise work between them takes as long again where each operation
reads and writes all tiles. Here a block goes through all of it at once, in float32, and what the backward pass needs is
kept as derivatives: there they are multiplied by the gradient, and no more.

N: tiles, n of them in a block. E: width of their embeddings. H: width of the attention network.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 2048  # tiles that are taken at once on the CPU


class _Gated(torch.autograd.Function):
    """w (tanh(V h + v) * sigmoid(U h + u)) of each tile's h; * is elementwise (Ilse et al. 2018, equation 9)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, V: Tensor, v: Tensor, U: Tensor, u: Tensor, w: Tensor) -> Tensor:  # noqa: N803  # as the paper calls them
        """(N, E), (H, E), (H,), (H, E), (H,), (H,) -> (N,) in the precision of w."""
        width = len(w)
        # tanh x = 2 sigmoid 2x - 1: PyTorch's sigmoid is five times as quick as its tanh, and doubling is exact.
        both, bias = torch.cat((2 * V, U)).to(h.dtype).T, torch.cat((2 * v, u)).to(h.dtype)  # (E, 2H), (2H,)
        score = w.new_empty(len(h))
        mixed, slope = h.new_empty(len(h), width), h.new_empty(len(h), 2 * width)
        for part in _blocks(h):
            z = torch.addmm(bias, h[part], both).to(w.dtype).sigmoid_()  # (n, 2H)
            t, s = z[:, :width].mul_(2).sub_(1), z[:, width:]  # (n, H) each
            m = t * s
            torch.mv(m, w, out=score[part])
            mixed[part] = m
            torch.addcmul(s, m, t, value=-1, out=t)  # s (1 - t²)
            torch.addcmul(m, m, s, value=-1, out=s)  # t s (1 - s)
            slope[part] = z
        ctx.save_for_backward(h, V, U, w, mixed, slope)
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(N,) -> the gradients of what `forward` was given, that of h where it is wanted."""
        h, V, U, w, mixed, slope = ctx.saved_tensors  # noqa: N806  # as the paper calls them
        both = torch.cat((V, U))  # (2H, E)
        weight = torch.cat((w, w))[:, None]  # (2H, 1)
        grad_both, grad_bias = torch.zeros_like(both), torch.zeros_like(weight)
        grad_h = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        weighted = (weight * both).to(h.dtype)
        grad = grad.to(h.dtype)[:, None]  # (N, 1)
        for part in _blocks(h):
            g = slope[part] * grad[part]  # (n, 2H), but for w
            grad_both += g.T @ h[part]
            grad_bias += g.sum(dim=0)[:, None]
            if grad_h is not None:
                torch.mm(g, weighted, out=grad_h[part])
        grad_V, grad_U = (weight * grad_both).chunk(2)  # noqa: N806  # as the paper calls them
        grad_v, grad_u = (weight * grad_bias).squeeze(1).chunk(2)
        return grad_h, grad_V, grad_v, grad_U, grad_u, (grad.T @ mixed).squeeze(0).to(w.dtype)


def gated(h: Tensor, content: nn.Linear, gate: nn.Linear, weigh: nn.Linear) -> Tensor:
    """The attention of tiles before the softmax: h (N, E) of any float type -> (N, 1), in that of the weights."""
    with torch.autocast(h.device.type, enabled=False):
        score: Tensor = _Gated.apply(h, content.weight, content.bias, gate.weight, gate.bias, weigh.weight[0])
        return score[:, None] + weigh.bias


def _blocks(h: Tensor) -> list[slice]:
    """Blocks of tiles; one of all where there is no cache to stay in."""
    size = BLOCK if h.device.type == "cpu" else len(h)
    return [slice(first, first + size) for first in range(0, len(h), size)]
