"""Pictures made smaller by the mean over the area of each wanted pixel, whatever the ratio and wherever they begin.

Filters that look at whole pixels only (nearest, or OpenCV's area filter at rounded sizes) shift what they show by parts
of a pixel, which differ from tile to tile and from scanner to scanner.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_SHIFT = 0.005  # px over a whole picture that nobody can tell from none


def area_mean(
    pixels: NDArray[np.uint8], offset_px: tuple[float, float], ratio: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Means of `pixels` (h, w) or (h, w, 3) over the rectangles of `ratio` (x, y) px from `offset_px` (x, y) on.

    `size_px` is (width, height) of the result. Rectangles may cut pixels, which then count by the part that is cut;
    what lies beyond the edge repeats it. Below a ratio of 1, where more is wanted than there is, it is interpolated.
    The result may be a view of `pixels`.
    """
    width, height = size_px
    x, y = round(offset_px[0]), round(offset_px[1])
    if abs(offset_px[0] - x) < _SHIFT and abs(offset_px[1] - y) < _SHIFT:
        if abs(ratio[0] - 1) * width < _SHIFT and abs(ratio[1] - 1) * height < _SHIFT:
            cut = pixels[y : y + height, x : x + width]
            return cut if cut.shape[:2] == (height, width) else _with_edge_repeated(cut, size_px)
        if min(ratio) > 1 or ratio in ((1, ratio[1]), (ratio[0], 1)):
            return _mean_from_pixel(pixels[y:, x:], ratio, size_px)
    if min(ratio) < 1:
        return _interpolated(pixels, offset_px, ratio, size_px)
    if all(abs(2 * v - round(2 * v)) < _SHIFT for v in offset_px):
        return _mean_from_half(pixels, offset_px, ratio, size_px)
    return _mean_from_anywhere(pixels, offset_px, ratio, size_px)


def _with_edge_repeated(cut: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    below, right = size_px[1] - cut.shape[0], size_px[0] - cut.shape[1]
    return np.asarray(cv2.copyMakeBorder(cut, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)


def _mean_from_pixel(
    pixels: NDArray[np.uint8], ratio: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """From a whole pixel on. Where it is told no size, OpenCV takes the ratio itself and not that of two sizes."""
    needed = (int(np.ceil(n * r - 1e-6)) for n, r in zip(size_px, ratio, strict=True))
    width, height = needed
    cut = pixels[:height, :width]
    if cut.shape[:2] != (height, width):
        cut = _with_edge_repeated(cut, (width, height))
    if all(abs(r - round(r)) * n < _SHIFT for r, n in zip(ratio, size_px, strict=True)):
        whole = tuple(n * round(r) for n, r in zip(size_px, ratio, strict=True))
        return np.asarray(cv2.resize(cut[: whole[1], : whole[0]], size_px, interpolation=cv2.INTER_AREA), np.uint8)
    small = cv2.resize(cut, None, fx=1 / ratio[0], fy=1 / ratio[1], interpolation=cv2.INTER_AREA)
    if small.shape == cut.shape:  # for so few pixels at a ratio so near to 1, OpenCV would have copied
        return _mean_from_anywhere(cut, (0, 0), ratio, size_px)
    return np.asarray(small[: size_px[1], : size_px[0]], np.uint8)


def _mean_from_half(
    pixels: NDArray[np.uint8], offset_px: tuple[float, float], ratio: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """From the middle of a pixel on, where subsampled colours often begin: by pixels cut into four."""
    left, top = (int(v) for v in offset_px)
    right, bottom = (int(np.ceil(v + n * r)) for v, n, r in zip(offset_px, size_px, ratio, strict=True))
    cut = pixels[top:bottom, left:right]
    fourfold = np.asarray(cv2.resize(cut, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST), np.uint8)
    x, y = (round(2 * v) - 2 * first for v, first in zip(offset_px, (left, top), strict=True))
    return _mean_from_pixel(fourfold[y:, x:], (2 * ratio[0], 2 * ratio[1]), size_px)


def _mean_from_anywhere(
    pixels: NDArray[np.uint8], offset_px: tuple[float, float], ratio: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """By the running sum over both axes, which between pixels is linear in x and y, at the rectangles' corners."""
    edges = [start + r * np.arange(n + 1) for start, r, n in zip(offset_px, ratio, size_px, strict=True)]
    first = [max(0, int(edge[0])) for edge in edges]
    last = [min(side, int(np.ceil(edge[-1])) + 1) for side, edge in zip(pixels.shape[1::-1], edges, strict=True)]
    sums = cv2.integral(pixels[first[1] : last[1], first[0] : last[0]], sdepth=cv2.CV_64F)
    if pixels.ndim == 2:
        sums = sums[..., None]
    spans = []
    for axis, (edge, start) in enumerate(zip(edges, first, strict=True)):
        axis = 1 - axis
        length = sums.shape[axis] - 1
        at = np.clip(edge - start, 0, length)
        below = np.minimum(at.astype(np.intp), length - 1)
        part = (at - below).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low = np.take(sums, below, axis)
        sums = np.diff(low + part * (np.take(sums, below + 1, axis) - low), axis=axis)
        spans.append(np.maximum(np.diff(at), 1e-9))
    means = sums / (spans[1][:, None, None] * spans[0][None, :, None])
    return np.asarray(np.rint(means), np.uint8).reshape(size_px[1], size_px[0], *pixels.shape[2:])


def _interpolated(
    pixels: NDArray[np.uint8], offset_px: tuple[float, float], ratio: tuple[float, float], size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    to_source = np.array(
        [[ratio[0], 0, offset_px[0] + ratio[0] / 2 - 0.5], [0, ratio[1], offset_px[1] + ratio[1] / 2 - 0.5]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large = cv2.warpAffine(pixels, to_source, size_px, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(large, np.uint8)
