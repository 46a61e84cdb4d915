"""DINO's schedules: what the optimiser, the teacher's average and its temperature are set to at each step.

All are functions of the step alone, so a run that goes on from a checkpoint needs no state of theirs. Values and
shapes are those of the official recipe (Caron et al. 2021, arXiv 2104.14294, and its repository).
"""

import math
from dataclasses import dataclass


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which it would reach at step `steps`."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def linear(start: float, end: float, step: int, steps: int) -> float:
    """`start` at step 0, `end` at step `steps` - 1 and after, straight between."""
    return end if step >= steps - 1 else start + (end - start) * step / (steps - 1)


@dataclass(frozen=True)
class Schedules:
    """The schedules of one run of `steps` optimiser steps, `steps_per_epoch` of them an epoch.

    `peak_lr` is the learning rate after the warm-up, already scaled to the batch. A pair is (start, end).
    """

    steps: int
    steps_per_epoch: int
    peak_lr: float
    min_lr: float
    warmup_epochs: int
    weight_decay: tuple[float, float]
    ema_momentum: tuple[float, float]
    teacher_temperature: tuple[float, float]
    temperature_warmup_epochs: int

    def lr(self, step: int) -> float:
        """Linear from 0 to the peak over the warm-up, then cosine to `min_lr`."""
        warmup = min(self.warmup_epochs * self.steps_per_epoch, self.steps)
        if step < warmup:
            return linear(0.0, self.peak_lr, step, warmup)
        return cosine(self.peak_lr, self.min_lr, step - warmup, self.steps - warmup)

    def decay(self, step: int) -> float:
        """Weight decay, cosine from start to end."""
        return cosine(*self.weight_decay, step, self.steps)

    def momentum(self, step: int) -> float:
        """Share of the old teacher in the new one, cosine from start to end."""
        return cosine(*self.ema_momentum, step, self.steps)

    def temperature(self, epoch: int) -> float:
        """The teacher's softmax temperature, linear over its warm-up, then constant."""
        return linear(*self.teacher_temperature, epoch, self.temperature_warmup_epochs)
