"""Student and teacher are alike: a backbone, and a head that all views go through together.

As in the official repository (Caron et al. 2021, `MultiCropWrapper`), views of one size go through the
backbone at once.

Shapes: N views, D features, K outputs of the head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papsmear.ssl.head import DINOHead


class Branch(nn.Module):
    """Backbone and head; student and teacher are one each."""

    def __init__(self, backbone: Any, head: DINOHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (N, D) and outputs (N, K) of normalised views of one size each, (N1, 3, H, W), (N2, 3, h, w)."""
        features = torch.cat([self.backbone(images) for images in views])
        return features, self.head(features)
