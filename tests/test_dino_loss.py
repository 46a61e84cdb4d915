"""The loss against the paper's formula in plain loops; the head's last layer."""

import math

import pytest
import torch
from torch import Tensor

from papsmear.ssl.head import DINOHead
from papsmear.ssl.loss import DINOLoss, entropy


def loss_by_loops(student: Tensor, teacher: Tensor, centre: Tensor, student_t: float, teacher_t: float) -> float:
    """Equation 3 of the paper, pair by pair and image by image."""
    total, pairs = 0.0, 0
    for t in range(len(teacher)):
        for v in range(len(student)):
            if v == t:
                continue
            for b in range(student.shape[1]):
                p = torch.exp((teacher[t, b] - centre) / teacher_t)
                q = torch.exp(student[v, b] / student_t)
                total += -float(((p / p.sum()) * torch.log(q / q.sum())).sum()) / student.shape[1]
            pairs += 1
    return total / pairs


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize(("student_t", "teacher_t"), [(0.1, 0.04), (0.2, 0.07), (1.0, 1.0)])
def test_loss_is_the_formula(views: int, student_t: float, teacher_t: float) -> None:
    torch.manual_seed(views)
    student = torch.randn(views, 3, 7).double()
    teacher = torch.randn(2, 3, 7)
    loss = DINOLoss(7, student_t)
    loss.centre.copy_(torch.randn(7))
    value = loss(student.float(), loss.teacher_probabilities(teacher, teacher_t))
    wanted = loss_by_loops(student, teacher.double(), loss.centre.double(), student_t, teacher_t)
    assert float(value) == pytest.approx(wanted, rel=1e-4)


def test_autocast_leaves_loss_and_gradient_at_full_precision() -> None:
    torch.manual_seed(0)
    loss, teacher = DINOLoss(512), 0.1 * torch.randn(2, 4, 512)
    results = []
    for enabled in (False, True):
        student = (0.1 * torch.randn(2, 4, 512, generator=torch.Generator().manual_seed(1))).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(student, loss.teacher_probabilities(teacher, 0.04))
        results.append((value.detach(), *torch.autograd.grad(value, student)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


def test_the_teacher_gets_no_gradient() -> None:
    teacher = torch.randn(2, 3, 7, requires_grad=True)
    student = torch.randn(2, 3, 7, requires_grad=True)
    loss = DINOLoss(7)
    loss(student, loss.teacher_probabilities(teacher, 0.04)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_the_centre_follows_the_mean_of_the_teacher() -> None:
    loss = DINOLoss(3, centre_momentum=0.9)
    for value in (1.0, 3.0):
        loss.update_centre(torch.tensor([0.0, value, -value]).expand(2, 4, 3))
    torch.testing.assert_close(loss.centre, torch.tensor([0.0, 0.9 * 0.1 + 0.3, -0.39]))
    assert "centre" in loss.state_dict()


def test_a_large_output_makes_no_infinity() -> None:
    loss = DINOLoss(4)
    outputs = torch.tensor([1e4, -1e4, 0, 0]).expand(2, 1, 4)
    assert torch.isfinite(loss(outputs, loss.teacher_probabilities(outputs, 0.04)))


def test_entropy_at_both_signs_of_collapse() -> None:
    assert float(entropy(torch.full((2, 3, 8), 1 / 8))) == pytest.approx(math.log(8))
    assert float(entropy(torch.eye(8))) == 0


def test_rows_of_the_last_layer_keep_norm_one() -> None:
    torch.manual_seed(0)
    head = DINOHead(width=6, outputs=20, hidden=16, bottleneck=8)
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    before = head.last_layer.weight().detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        head(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()
    after = head.last_layer.weight().detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(20))


def test_outputs_are_cosines_unless_the_norm_is_learnt() -> None:
    head = DINOHead(6, 20, hidden=16, bottleneck=8)
    assert head(100 * torch.randn(50, 6)).abs().max() <= 1 + 1e-5
    assert not head.last_layer.norm.requires_grad
    assert DINOHead(6, 20, hidden=16, bottleneck=8, norm_last_layer=False).last_layer.norm.requires_grad


def test_the_last_layer_is_torchs_weight_norm() -> None:
    head = DINOHead(6, 20, hidden=16, bottleneck=8)
    torch.nn.init.uniform_(head.last_layer.norm, 0.5, 2)
    plain = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 20, bias=False))
    plain.load_state_dict(
        {
            "parametrizations.weight.original0": head.last_layer.norm,
            "parametrizations.weight.original1": head.last_layer.direction,
        }
    )
    x = torch.randn(4, 8)
    torch.testing.assert_close(head.last_layer(x), plain(x))
