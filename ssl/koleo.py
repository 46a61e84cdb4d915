"""KoLeo: features spread out evenly, since each is pushed away from its nearest neighbour.

Sablayrolles et al. 2019 (arXiv 1806.03198), section 3.2: the estimator of differential entropy of Kozachenko and
Leonenko. As in DINOv2 (Oquab et al., arXiv 2304.07193) it looks at L2-normalised features of the images of one device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from papsmear.ssl.loss import precise

_EPS = 1e-8  # keeps the logarithm and the gradient finite where two features are the same


def koleo_loss(features: Tensor) -> Tensor:
    """-mean log distance () of each of the features (B, D) from the nearest other one; B is at least 2."""
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(precise(features), dim=-1, eps=_EPS)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)  # (B,)
        loss: Tensor = -(F.pairwise_distance(unit, unit[nearest], eps=_EPS) + _EPS).log().mean()
    return loss
