"""Dropout whose mask costs little on the CPU, where PyTorch's takes longer than the products of an attention head.

PyTorch draws a float for each element. Here it is a byte, eight of them from one draw, and a byte below 256 p drops its
element, so that p is rounded to 1 / 256. The draws come from torch's generator, as those of `nn.Dropout` do.
"""

import torch
from torch import Tensor, nn

LEVELS = 256  # values of a byte


class Dropout(nn.Dropout):
    """Zeroes elements with probability p in training, and scales the others by 1 / (1 - p)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Any shape -> the same."""
        dropped = round(self.p * LEVELS)
        if not self.training or dropped in (0, LEVELS) or input.device.type != "cpu":
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        byte = draws.view(torch.uint8)[: input.numel()].view(input.shape)
        keep = torch.ge(byte, dropped, out=byte).to(input.dtype)  # 0 or 1
        return input * keep.mul_(LEVELS / (LEVELS - dropped))
