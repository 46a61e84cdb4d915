"""The projection head of DINO: a three-layer MLP, a unit sphere, and a weight-normalised layer of many outputs.

Caron et al. 2021, appendix C, and the official repository.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DINOHead(nn.Module):
    """Features (B, D) to outputs (B, K)."""

    def __init__(
        self, width: int, outputs: int, hidden: int = 2048, bottleneck: int = 256, norm_last_layer: bool = True
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck, outputs, learn_norm=not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs (B, K) before any softmax."""
        x = F.normalize(self.mlp(features), dim=-1)
        outputs: Tensor = self.last_layer(x)
        return outputs


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are `norm` (1 unless learnt) times the unit vectors along `direction`."""

    def __init__(self, inputs: int, outputs: int, learn_norm: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, inputs).uniform_(-1, 1) / inputs**0.5)
        self.norm = nn.Parameter(torch.ones(outputs, 1), requires_grad=learn_norm)

    def weight(self) -> Tensor:
        """The weight matrix (K, inputs)."""
        return self.norm * F.normalize(self.direction, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, K)."""
        return F.linear(x, self.weight())
