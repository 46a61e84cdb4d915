"""The two views of a tile that DINO compares: the official augmentation, on uint8 with OpenCV.

The official pipeline (Caron et al. 2021, repository) works with Pillow; the same operations on uint8 arrays by
look-up tables and OpenCV take a fraction of the time and stay within a grey level (a test compares). Views leave
as uint8; the training device normalises them.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
_LEVELS = np.arange(256, dtype=np.float32)
_SOLARISED = np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8)


@dataclass(frozen=True)
class TwoViews:
    """Two random views of a picture; every default but the scale is the official one.

    `scale` is the share of the picture's area that a view shows: 0.14 to 1, as the official repository advises where
    there are no local crops. Pairs are (first view, second view).
    """

    crop_px: int = 224
    scale: tuple[float, float] = (0.14, 1.0)
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_p: float = 0.2
    blur_p: tuple[float, float] = (1.0, 0.1)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarise_p: tuple[float, float] = (0.0, 0.2)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Two views (2, crop_px, crop_px, 3)."""
        return np.stack([self._view(picture, index, rng) for index in range(2)])

    def _view(self, picture: Picture, index: int, rng: np.random.Generator) -> Picture:
        x, y, w, h = draw_crop(rng, picture.shape[1], picture.shape[0], self.scale)
        view = resize(picture[y : y + h, x : x + w], self.crop_px)
        if rng.random() < 0.5:
            view = np.ascontiguousarray(view[:, ::-1])
        if rng.random() < self.jitter_p:
            view = self._jitter(view, rng)
        if rng.random() < self.grey_p:
            view = np.asarray(cv2.cvtColor(grey(view), cv2.COLOR_GRAY2RGB), np.uint8)
        if rng.random() < self.blur_p[index]:
            view = blur(view, rng.uniform(*self.blur_radius))
        if rng.random() < self.solarise_p[index]:
            view = np.asarray(cv2.LUT(view, _SOLARISED), np.uint8)
        return view

    def _jitter(self, view: Picture, rng: np.random.Generator) -> Picture:
        """Brightness, contrast, saturation and hue, in random order."""
        for operation in rng.permutation(4):
            if operation == 0:
                view = adjust_brightness(view, rng.uniform(1 - self.brightness, 1 + self.brightness))
            elif operation == 1:
                view = adjust_contrast(view, rng.uniform(1 - self.contrast, 1 + self.contrast))
            elif operation == 2:
                view = adjust_saturation(view, rng.uniform(1 - self.saturation, 1 + self.saturation))
            else:
                view = adjust_hue(view, rng.uniform(-self.hue, self.hue))
        return view


def draw_crop(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random rectangle (x, y, w, h) in px: area share U(scale), aspect log-uniform in 3/4 to 4/3.

    As torchvision's RandomResizedCrop: ten tries, then the largest centred rectangle of an allowed aspect.
    """
    area = width * height
    for _ in range(10):
        target, aspect = area * rng.uniform(*scale), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def resize(picture: Picture, side_px: int) -> Picture:
    """To (side_px, side_px, 3): cubic, area means where the picture shrinks to less than two thirds (no aliasing)."""
    shrinks = min(picture.shape[:2]) > 1.5 * side_px
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side_px, side_px), interpolation=method), np.uint8)


def grey(picture: Picture) -> Picture:
    """Luma (H, W) of ITU-R 601."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def adjust_brightness(picture: Picture, factor: float) -> Picture:
    """Every level times `factor`."""
    return _look_up(picture, factor * _LEVELS)


def adjust_contrast(picture: Picture, factor: float) -> Picture:
    """Distances from the mean luma times `factor`."""
    mean = round(cv2.mean(grey(picture))[0])
    return _look_up(picture, factor * _LEVELS + (1 - factor) * mean)


def adjust_saturation(picture: Picture, factor: float) -> Picture:
    """Distances from each pixel's luma times `factor`."""
    luma = cv2.cvtColor(grey(picture), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(picture, factor, luma, 1 - factor, 0), np.uint8)


def adjust_hue(picture: Picture, turn: float) -> Picture:
    """Hue shifted by `turn` of the colour circle."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)  # a byte, which wraps; torchvision truncates too
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def blur(picture: Picture, sigma_px: float) -> Picture:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), np.uint8)


def _look_up(picture: Picture, levels: NDArray[np.float32]) -> Picture:
    return np.asarray(cv2.LUT(picture, np.clip(levels, 0, 255).astype(np.uint8)), np.uint8)
