"""Layers of dye on the glass, and the light that passes them."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.phantom.canvas import Plane, psf_px
from papsmear.tiling.phantom.stain import Stain


@dataclass
class Dye:
    """What lies in each pixel, as densities at the typical strength of a stain.

    Attributes:
        sheet: Cytoplasm, (H, W).
        pink: The part of it that took eosin in place of light green, (H, W).
        orange: Share of the pink part that took orange G, 0..1.
        nuclear: Haematoxylin, (H, W).
    """

    sheet: Plane
    pink: Plane
    orange: float
    nuclear: Plane

    def light(self, stain: Stain, mpp: float) -> NDArray[np.float32]:
        """Transmittance (H, W, 3), exactly 1 along the border.

        Dye becomes light once, by Beer-Lambert, and the optics' blur acts on the light, as it does in a microscope.
        """
        cyan, eosin, orange, nuclear = -stain.density().T
        pink = (1 - self.orange) * eosin + self.orange * orange - cyan
        channels = []
        for a, b, c in zip(cyan.tolist(), pink.tolist(), nuclear.tolist(), strict=True):
            density = cv2.addWeighted(self.sheet, a, self.pink, b, 0)
            cv2.scaleAdd(self.nuclear, c, density, dst=density)
            channels.append(cv2.exp(density, dst=density))
        through = cv2.merge(channels)
        sigma = psf_px(mpp)
        kernel = cv2.getGaussianKernel(2 * int(np.ceil(2.7 * sigma)) + 1, sigma, cv2.CV_32F)
        through = cv2.sepFilter2D(through, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        np.minimum(through, 1, out=through)
        through[[0, -1]] = 1
        through[:, [0, -1]] = 1
        return np.asarray(through, np.float32)
