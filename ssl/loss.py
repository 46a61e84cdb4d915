"""The DINO loss: the student's views predict what the teacher says of the other views.

The teacher's outputs are centred (against collapse to one output) and sharpened by a low temperature (against
collapse to all outputs alike). Caron et al. 2021, equations 1 to 4 and algorithm 1.

Shapes: V student views, T teacher views (the first T of the V), B images, K outputs of the head.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class DINOLoss(nn.Module):
    """Cross-entropy between teacher and student over all pairs of different views, and the teacher's centre.

    The centre is a buffer: it belongs to the state of the run.
    """

    centre: Tensor

    def __init__(self, outputs: int, student_temperature: float = 0.1, centre_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.centre_momentum = centre_momentum
        self.register_buffer("centre", torch.zeros(outputs))

    def teacher_probabilities(self, teacher: Tensor, temperature: float) -> Tensor:
        """Centred and sharpened probabilities (T, B, K) of the teacher's outputs (T, B, K), without gradient."""
        return ((precise(teacher.detach()) - self.centre) / temperature).softmax(-1)

    def forward(self, student: Tensor, probabilities: Tensor) -> Tensor:
        """The loss () of the student's outputs (V, B, K) given the teacher's probabilities (T, B, K)."""
        log_student = (precise(student) / self.student_temperature).log_softmax(-1)
        # one cross-entropy for each teacher view t and student view v, mean over images b; at full precision, since
        # probabilities of K outputs differ by less than bfloat16 can say
        with torch.autocast(student.device.type, enabled=False):
            pairs = -torch.einsum("tbk,vbk->tv", probabilities, log_student) / student.shape[1]
        same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
        return pairs[~same].mean()

    @torch.no_grad()
    def update_centre(self, teacher: Tensor) -> None:
        """Moves the centre towards the mean of the teacher's outputs (T, B, K) over views, images and ranks."""
        mean = precise(teacher).mean(dim=(0, 1))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.centre.lerp_(mean, 1 - self.centre_momentum)


def precise(outputs: Tensor) -> Tensor:
    """The same at single precision, or at double if it has that."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy () in nats of distributions (..., K); 0 and ln K are the two signs of collapse."""
    return -torch.xlogy(probabilities, probabilities).sum(-1).mean()
