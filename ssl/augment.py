"""The views of a tile that DINO compares: the official augmentation, on uint8 with OpenCV.

The official pipeline (Caron et al. 2021, repository) works with Pillow; the same operations on uint8 arrays by
OpenCV take a fraction of the time and stay within a grey level (a test compares). Views leave as uint8; the training
device normalises them.

Beside the official list stand choices for cytology, all off by default. They draw from the generator only where they
are on, so the views of a run without them stay what they were.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError
from papsmear.ssl.stain import adjust_stains

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
_LEVELS = np.arange(256, dtype=np.float32)
_CUT_OFF = 0.499999  # taken off a level that OpenCV rounds, so that it is cut off as Pillow does
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH
_SOLARISED = np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8)


@dataclass(frozen=True)
class Views:
    """Random views of a picture: by default the two global ones, and every default but the scale is the official one.

    `scale` is the share of the picture's area that a view shows: 0.14 to 1, as the official repository advises where
    there are no local crops; where there are, 0.4 to 1. `blur_p` and `solarise_p` have one probability for each view.

    The choices for cytology:
    `turns`: one of the eight symmetries of the square, each as likely; cells have no up.
    `stain_jitter`: s of Tellez et al. 2018: stains times U(1 - s, 1 + s) plus U(-s, s); 0.05 is their light jitter.
    `hsv_jitter`: of hue, saturation and value: the hue moves by U(-h, h) of the circle, the others are multiplied by
    U(1 - x, 1 + x); with sharpening among the augmentations of Cheng et al. 2021 (Nat Commun 12:5639).
    `sharpen_p`: how often a view is sharpened, by a factor U(1, 2) in the sense of Pillow's ImageEnhance.Sharpness.
    `nucleus_scale`: in place of `scale`: how large a nucleus may be in a view, 1 being its size in the tile. At scale
    0.14 to 1 the same nucleus is seen at diameters that differ 2.7 times, more than dysplasia makes it grow.
    """

    crop_px: int = 224
    scale: tuple[float, float] = (0.14, 1.0)
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_p: float = 0.2
    blur_p: tuple[float, ...] = (1.0, 0.1)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarise_p: tuple[float, ...] = (0.0, 0.2)
    turns: bool = False
    stain_jitter: float = 0.0
    hsv_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sharpen_p: float = 0.0
    nucleus_scale: tuple[float, float] | None = None

    def __call__(self, picture: Picture, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The views, (2, crop_px, crop_px, 3) by default."""
        return np.stack([self._view(picture, index, rng) for index in range(len(self.blur_p))])

    def local(self, count: int, crop_px: int = 96, scale: tuple[float, float] = (0.05, 0.4)) -> "Views":
        """`count` views of small parts by the same choices: blurred half of the time, never solarised."""
        return replace(self, crop_px=crop_px, scale=scale, blur_p=(0.5,) * count, solarise_p=(0.0,) * count)

    def _view(self, picture: Picture, index: int, rng: np.random.Generator) -> Picture:
        x, y, w, h = draw_crop(rng, picture.shape[1], picture.shape[0], self.area_share(picture))
        view = resize(picture[y : y + h, x : x + w], self.crop_px)
        if rng.random() < 0.5:
            view = np.asarray(cv2.flip(view, 1), np.uint8)
        if self.turns and (quarters := int(rng.integers(4))):
            view = np.asarray(cv2.rotate(view, quarters - 1), np.uint8)  # OpenCV counts from 0, clockwise
        if self.stain_jitter:
            low, high = 1 - self.stain_jitter, 1 + self.stain_jitter
            view = adjust_stains(view, rng.uniform(low, high, 3), rng.uniform(low, high, 3) - 1)
        if any(self.hsv_jitter):
            view = adjust_hsv(view, *rng.uniform(-1, 1, 3) * self.hsv_jitter + (0, 1, 1))
        if rng.random() < self.jitter_p:
            view = self._jitter(view, rng)
        if rng.random() < self.grey_p:
            view = np.asarray(cv2.cvtColor(grey(view), cv2.COLOR_GRAY2RGB), np.uint8)
        if rng.random() < self.blur_p[index]:
            view = blur(view, rng.uniform(*self.blur_radius))
        if self.sharpen_p and rng.random() < self.sharpen_p:
            view = adjust_sharpness(view, rng.uniform(1, 2))
        if rng.random() < self.solarise_p[index]:
            view = np.asarray(cv2.LUT(view, _SOLARISED), np.uint8)
        return view

    def area_share(self, picture: Picture) -> tuple[float, float]:
        """Smallest and largest share of the picture that a view shows: `scale`, or what `nucleus_scale` comes to."""
        if self.nucleus_scale is None:
            return self.scale
        small, large = self.nucleus_scale
        area = picture.shape[0] * picture.shape[1]
        least, most = (self.crop_px / large) ** 2 / area, (self.crop_px / small) ** 2 / area
        if least > 1:
            least_scale = self.crop_px / math.sqrt(area)
            raise UsageError(
                f"data.nucleus_scale {small} to {large}: a view of {self.crop_px} px of a whole tile shows nuclei at "
                f"{least_scale:.2f} of their size; give values around that or larger, or a smaller crop_px"
            )
        return least, min(most, 1.0)

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
    """Every level times `factor`, cut off to whole levels."""
    return np.asarray(cv2.convertScaleAbs(picture, alpha=factor, beta=-_CUT_OFF), np.uint8)


def adjust_contrast(picture: Picture, factor: float) -> Picture:
    """Distances from the mean luma times `factor`, cut off to whole levels."""
    mean = round(cv2.mean(grey(picture))[0])
    return np.asarray(cv2.addWeighted(picture, factor, picture, 0, (1 - factor) * mean - _CUT_OFF), np.uint8)


def adjust_saturation(picture: Picture, factor: float) -> Picture:
    """Distances from each pixel's luma times `factor`."""
    luma = cv2.cvtColor(grey(picture), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(picture, factor, luma, 1 - factor, 0), np.uint8)


def adjust_hue(picture: Picture, turn: float) -> Picture:
    """Hue shifted by `turn` of the colour circle."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    row = np.zeros((hsv.shape[1], 3), np.uint8)
    row[:, 0] = int(turn * 255) % 256  # torchvision truncates too
    np.add(hsv.reshape(len(hsv), -1), row.reshape(-1), out=hsv.reshape(len(hsv), -1))  # bytes, which wrap
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def adjust_hsv(picture: Picture, turn: float, saturation: float, value: float) -> Picture:
    """Hue shifted by `turn` of the colour circle, saturation and value times their factors."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    tables = np.stack([(_LEVELS + round(turn * 256)) % 256, saturation * _LEVELS, value * _LEVELS], -1)
    changed = cv2.LUT(hsv, np.clip(tables.round(), 0, 255).astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def adjust_sharpness(picture: Picture, factor: float) -> Picture:
    """Distances from the smoothed picture times `factor`; the outermost pixels stay as they are."""
    smooth = cv2.filter2D(picture, -1, _SMOOTH)
    sharp = cv2.addWeighted(picture, factor, smooth, 1 - factor, 0)
    sharp[[0, -1]], sharp[:, [0, -1]] = picture[[0, -1]], picture[:, [0, -1]]
    return np.asarray(sharp, np.uint8)


def blur(picture: Picture, sigma_px: float) -> Picture:
    """Gaussian blur, out to three sigma; cv2.GaussianBlur does the same on uint8 in fixed point, at half the speed."""
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma_px) + 1, sigma_px, cv2.CV_32F)
    return np.asarray(cv2.sepFilter2D(picture, -1, kernel, kernel), np.uint8)
