"""How parameters move in a step of DINO: which decay, how gradients are clipped, how the teacher follows."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: `decays` is False for biases and all other 1-D parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "decays": True},
        {"params": [parameter for parameter in parameters if parameter.ndim == 1], "decays": False},
    ]


def make_optimizer(module: nn.Module, kind: Literal["adamw", "sgd"], fused: bool) -> Optimizer:
    """AdamW, or SGD with momentum 0.9; a fused AdamW is one pass a step, for gradients that no scaler scaled.

    torch's fused SGD cannot begin with a part of the weights, as it must while the last layer is frozen.
    """
    groups = decay_groups(module)
    return SGD(groups, lr=0.0, momentum=0.9) if kind == "sgd" else AdamW(groups, fused=fused)


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
    """Scales each gradient whose own norm is above `clip_norm` down to it; gives the norm () of all before that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_((clip_norm / (norm + 1e-6)).clamp(max=1))
    total: Tensor = torch.stack(norms).norm()
    return total


@torch.no_grad()
def move_average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum · teacher + (1 - momentum) · student, over parameters, not buffers."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
