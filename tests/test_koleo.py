"""KoLeo against a loop over pairs; what it does to features."""

import math

import pytest
import torch
from torch.nn import functional as F

from papsmear.ssl.koleo import koleo_loss


def test_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    features = torch.randn(7, 5).double()
    unit = features / features.norm(dim=1, keepdim=True)
    wanted = 0.0
    for i in range(7):
        wanted -= math.log(min(float((unit[i] - unit[j]).norm()) for j in range(7) if j != i)) / 7
    assert float(koleo_loss(features)) == pytest.approx(wanted, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(koleo_loss(features.float())) == pytest.approx(wanted, rel=1e-5), "at full precision"


def test_it_spreads_features_and_survives_equal_ones() -> None:
    torch.manual_seed(0)
    features = (torch.tensor([1.0, 0.0, 0.0]) + 0.01 * torch.randn(6, 3)).requires_grad_()
    optimizer = torch.optim.SGD([features], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        koleo_loss(features).backward()
        optimizer.step()
    unit = F.normalize(features.detach(), dim=1)
    assert torch.pdist(unit).min() > 0.8
    same = torch.ones(4, 3, requires_grad=True)
    koleo_loss(same).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
