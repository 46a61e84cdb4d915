"""iBOT: the student also says what the teacher says of the patches that were hidden from the student.

Zhou et al. 2022 (arXiv 2111.07832), section 3: the loss L_MIM, one head for images and patches, a centre of its own.
The hiding is that of DINOv2 (Oquab et al., arXiv 2304.07193, and its repository): half of the global views lose blocks
of patches, 10 to 50 % of them, and centre and loss look at hidden patches only, so the head need not say anything of
the others. Which patches are hidden follows from the seed and the place of the image in the run.

Shapes: B images of this rank, 2 global views of each, M hidden patches of them all, K outputs of the head.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from papsmear import seeds
from papsmear.ssl.loss import precise

SHARE = (0.1, 0.5)  # of the patches of a view
SMALLEST_BLOCK = 4  # patches
ASPECT = 0.3  # to 1 / 0.3, log-uniform
TRIES = 10  # for a block


@dataclass(frozen=True)
class Hidden:
    """Hidden patches: their indices (M,) among those of the views (2, B), and the divisors (M,) of their losses.

    A divisor is the number of patches hidden in the view times 2B: the loss is a mean over patches, then over views.
    """

    index: Tensor
    divisor: Tensor

    def to(self, device: torch.device) -> "Hidden":
        """The same on a device."""
        return Hidden(self.index.to(device, non_blocking=True), self.divisor.to(device, non_blocking=True))


def hide_patches(grid: tuple[int, int], images: range, batch_size: int, seed: int, epoch: int, batch: int) -> Hidden:
    """What is hidden of the two views of `images`, the places of this rank's images in a batch of all ranks.

    It is the same for any number of ranks.
    """
    half = seeds.rng(seed, "hidden", epoch, batch).permutation(2 * batch_size)[:batch_size]
    loses = np.isin(np.arange(2 * batch_size), half).reshape(2, batch_size)
    masks = np.zeros((2, len(images), *grid), bool)
    for view in range(2):
        for number, place in enumerate(images):
            if loses[view, place]:
                rng = seeds.rng(seed, "hidden", epoch, batch, view, place)
                masks[view, number] = block_mask(rng, grid, int(rng.uniform(*SHARE) * grid[0] * grid[1]))
    flat = masks.reshape(2 * len(images), -1)
    of_views = flat.sum(1)
    return Hidden(torch.from_numpy(np.flatnonzero(flat)), torch.from_numpy(len(flat) * of_views.repeat(of_views)))


def block_mask(rng: np.random.Generator, grid: tuple[int, int], wanted: int) -> NDArray[np.bool_]:
    """A mask (rows, columns) of rectangles that may overlap: `wanted` patches, or fewer where no block fits."""
    mask = np.zeros(grid, bool)
    while (missing := wanted - int(np.count_nonzero(mask))) > 0:
        if not _add_block(mask, rng, missing):
            break
    return mask


def _add_block(mask: NDArray[np.bool_], rng: np.random.Generator, most: int) -> bool:
    rows, columns = mask.shape
    for size, shape, down, right in rng.random((TRIES, 4)).tolist():  # at once, since this is between two steps
        area, aspect = SMALLEST_BLOCK + (most - SMALLEST_BLOCK) * size, ASPECT ** (1 - 2 * shape)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < rows and width < columns:
            top, left = int(down * (rows - height + 1)), int(right * (columns - width + 1))
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - np.count_nonzero(block) <= most:
                block[:] = True
                return True
    return False


class IBOTLoss(nn.Module):
    """Cross-entropy between teacher and student over hidden patches, and the teacher's centre of patches."""

    centre: Tensor

    def __init__(self, outputs: int, student_temperature: float = 0.1, centre_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.centre_momentum = centre_momentum
        self.register_buffer("centre", torch.zeros(outputs))

    def forward(self, student: Tensor, teacher: Tensor, divisor: Tensor, temperature: float) -> Tensor:
        """The loss () of the student's outputs (M, K) given the teacher's (M, K), each patch by its divisor (M,)."""
        with torch.autocast(student.device.type, enabled=False):
            log_student = (precise(student) / self.student_temperature).log_softmax(-1)
            probabilities = ((precise(teacher.detach()) - self.centre) / temperature).softmax(-1)
            return -((probabilities * log_student).sum(-1) / divisor).sum()

    @torch.no_grad()
    def update_centre(self, teacher: Tensor) -> None:
        """Moves the centre towards the mean of the teacher's outputs (M, K) over the hidden patches of all ranks."""
        total = F.pad(precise(teacher).sum(0), (0, 1), value=len(teacher))  # (K + 1,), and how many
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        mean = total[:-1] / total[-1].clamp(min=1)
        self.centre.lerp_(mean, (1 - self.centre_momentum) * (total[-1] > 0))
