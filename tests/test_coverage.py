"""What covers the glass, against pictures of known place; what comes of it is tested with the deposits."""

import numpy as np

from papsmear.tiling.coverage import stained_mask


def test_stained_pixels_are_seen_faint_or_dark_whatever_the_glass() -> None:
    rng = np.random.default_rng(1)
    for glass in ((255, 255, 254), (243, 240, 238), (215, 220, 210)):
        rgb = np.full((200, 200, 3), glass, np.float64)
        rgb[50:60, 50:60] *= 0.9
        rgb[100:110, 100:110] *= (0.5, 0.3, 0.6)
        rgb += rng.normal(0, 1, rgb.shape)
        rgb[:, 190:] = 255  # never scanned
        mask = stained_mask(np.clip(rgb, 0, 255).astype(np.uint8))  # 16 µm/px
        assert mask[50:60, 50:60].mean() > 0.9
        assert mask[100:110, 100:110].all()
        assert mask[120:].mean() < 0.002
