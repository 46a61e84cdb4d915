"""Stain jitter: each dye of a stained picture a little stronger or weaker, as staining differs between laboratories.

The colour augmentation of Tellez et al. 2018 (IEEE TMI 37:2126, "Whole-slide mitosis detection in H&E breast histology
using PHH3 as a reference"): colour deconvolution (Ruifrok and Johnston 2001) with scikit-image's matrix, and in the
space of the stains s' = a · s + b for each stain. All of it is one affine map of the optical densities: a table
look-up, a product with a 3x4 matrix and an exponential for a whole picture.

Other than `skimage.color.rgb2hed` it does not cut negative stains to 0. The Papanicolaou stain has dyes that are not
mixtures of haematoxylin, eosin and DAB; the cut would turn all teal cells blue.

Stains are in natural units of optical density, -ln(I / 255); scikit-image divides these by -ln(1e-6).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed

_DENSITY = -np.log(np.maximum(np.arange(256) / 255, 1e-6)).astype(np.float32)  # of each grey level
_STAINS_FROM_RGB, _RGB_FROM_STAINS = hed_from_rgb.T, rgb_from_hed.T  # (3, 3), applied to columns


def adjust_stains(
    picture: NDArray[np.uint8], factors: NDArray[np.float64], shifts: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with its haematoxylin, eosin and DAB times `factors` (3,) plus `shifts` (3,)."""
    linear = _RGB_FROM_STAINS * factors @ _STAINS_FROM_RGB
    affine = np.column_stack([linear, _RGB_FROM_STAINS @ shifts])  # (3, 4)
    light = cv2.exp(-cv2.transform(cv2.LUT(picture, _DENSITY), affine.astype(np.float32)))
    return np.asarray(cv2.convertScaleAbs(light, alpha=255), np.uint8)  # rounds, and cuts at 255
