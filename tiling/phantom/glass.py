"""The empty glass of a phantom slide."""

import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.phantom.ink import UNITS
from papsmear.tiling.phantom.stain import Stain
from papsmear.tiling.phantom.svs import TILE_PX

_NOISE_PX = 1024  # after which the noise repeats


class Glass:
    """Empty glass under a lamp that is a little brighter on one side, with the sensor's noise."""

    def __init__(self, size_level0: tuple[int, int], stain: Stain, rng: np.random.Generator) -> None:
        width, height = size_level0
        base = -np.log(np.array(stain.glass) / 255.0)
        tilt = rng.uniform(0, 0.02, 2)
        x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)
        x, y = (axis[:: int(rng.choice((-1, 1)))] for axis in (x, y))
        self._columns = np.rint((base + tilt[0] * x[:, None]) * UNITS).astype(np.uint16)  # (W, 3)
        self._rows = np.rint(tilt[1] * y * UNITS).astype(np.uint16)  # (H,)
        noise = np.abs(rng.normal(0, 1.3 / 255, (TILE_PX, _NOISE_PX, 1)))
        self._noise = np.rint(np.repeat(noise, 3, 2) * UNITS).astype(np.uint16)

    def __call__(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint16]:
        """Optical densities (height, width, 3) from (left, top) on, a corner of the noise's pattern; height <= 256."""
        block = np.empty((height, width, 3), np.uint16)
        noise = self._noise[:height] + self._rows[top : top + height, None, None]
        for x in range(0, width, _NOISE_PX):
            columns = self._columns[left + x : left + min(x + _NOISE_PX, width)]
            np.add(noise[:, : len(columns)], columns, out=block[:, x : x + _NOISE_PX])
        return block
