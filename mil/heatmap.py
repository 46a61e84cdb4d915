"""Where on the slide a model looked: instance scores as colours over the overview.

Colours follow the rank of a score within its slide, not its value: attention is a softmax over thousands of tiles, so
a few values tower over the rest and a linear scale would show those few on one flat ground. The colours are inferno's,
whose lightness is even and readable without colour vision, run from light to dark: on a bright-field slide light
reads as nothing, dark as much. High ranks are more opaque than low ones, so the slide stays visible where the model
saw little.

N: tiles of the slide. H, W: the overview's pixels.
"""

import cv2
import numpy as np
import simplejpeg
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy.stats import rankdata

from papsmear.page import RESEARCH_USE_ONLY

COLOURS = "inferno_r"
LOWEST, HIGHEST = 0.12, 0.82
FAINTEST, STRONGEST = 0.10, 0.62


def percentile_ranks(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) scores as (N,) ranks within 0..1; equal scores get equal ranks, and all-equal ones 0.5 each."""
    return np.asarray((rankdata(scores, method="average") - 0.5) / max(len(scores), 1), dtype=np.float64)


def draw_heatmap(
    overview: NDArray[np.uint8],
    level0_px_per_px: float,
    xy_level0: NDArray[np.integer],
    size_level0: float,
    scores: NDArray[np.floating],
) -> NDArray[np.uint8]:
    """Blends the tiles' colours over the overview.

    Args:
        overview: (H, W, 3) RGB picture of the whole slide.
        level0_px_per_px: How many level-0 pixels one overview pixel spans.
        xy_level0: (N, 2) top-left corners of the tiles.
        size_level0: Side of a tile in level-0 pixels.
        scores: (N,) finite scores, on any scale.

    Returns:
        (H, W, 3) uint8, the overview itself where no tile lies.
    """
    height, width = overview.shape[:2]
    rank = np.full((height, width), np.nan)
    lower = np.rint(xy_level0 / level0_px_per_px).astype(int)  # (N, 2)
    upper = np.maximum(np.rint((xy_level0 + size_level0) / level0_px_per_px).astype(int), lower + 1)
    ranks = percentile_ranks(scores)
    for n in np.argsort(ranks, kind="stable"):  # the highest last: where tiles share a pixel it stays seen
        rank[lower[n, 1] : upper[n, 1], lower[n, 0] : upper[n, 0]] = ranks[n]
    painted = np.isfinite(rank)
    value = np.where(painted, rank, 0.0)
    blended = np.where(painted[..., None], _over(overview, value), overview)
    return np.rint(blended).clip(0, 255).astype(np.uint8)


def signed_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of a picture (H, W, 3) that says what it is for, in its lower left corner and as its comment."""
    picture = picture.copy()
    size = max(0.3, picture.shape[1] / 2800)
    (width, height), below = cv2.getTextSize(RESEARCH_USE_ONLY, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    picture[-(height + 2 * below) :, : width + 2 * below] = 255
    at = (below, picture.shape[0] - below)
    cv2.putText(picture, RESEARCH_USE_ONLY, at, cv2.FONT_HERSHEY_SIMPLEX, size, (29, 39, 51), 1, cv2.LINE_AA)
    jpeg: bytes = simplejpeg.encode_jpeg(picture, quality=88)
    head = 4 + int.from_bytes(jpeg[4:6], "big")  # SOI and APP0, behind which a comment (COM) may stand
    comment = RESEARCH_USE_ONLY.encode()
    return jpeg[:head] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[head:]


def legend_css() -> str:
    """The colours from the lowest to the highest rank, as they look on clean glass, as a CSS gradient."""
    stops = _over(np.full((9, 3), 245), np.linspace(0, 1, 9))
    return "linear-gradient(to right, " + ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in stops) + ")"


def _over(ground: NDArray[np.integer], rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) RGB of 0..255 that the colours of (...) ranks give over a ground (..., 3) of 0..255."""
    colour = 255 * np.asarray(colormaps[COLOURS](LOWEST + (HIGHEST - LOWEST) * rank))[..., :3]
    alpha = (FAINTEST + (STRONGEST - FAINTEST) * rank)[..., None]
    return np.asarray(ground * (1 - alpha) + colour * alpha, dtype=np.float64)
