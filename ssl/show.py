"""`papsmear show-batch`: a picture of the first tiles that a training would see, and of all views of each.

Looking at what the network sees is the quickest check of tiles and augmentation. It takes the training's own file.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError
from papsmear.files import whole
from papsmear.progress import say
from papsmear.ssl.data import TileData

_GAP = 4  # px
_LINE = 16  # px of a caption
_INK = (60, 60, 60)


def show_batch(
    data: TileData,
    out: Path = Path("batch.png"),
    count: int = 8,
    model: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    seed_everything: int | None = None,
) -> None:
    """Writes a sheet of the first tiles of a training and of their views, as the network sees them.

    Args:
        data: The tiles and the augmentation, as for `papsmear fit`.
        out: The PNG file.
        count: How many tiles.
        model: Not used; a training's file has it.
        trainer: Not used; a training's file has it.
        seed_everything: Not used; data.seed decides order and views.
    """
    if count < 1:
        raise UsageError(f"--count={count}: give 1 or more")
    if out.suffix != ".png":
        raise UsageError(f"--out={out}: the sheet is a PNG file; give a name that ends in .png")
    data.prepare_data()
    data.setup("fit")
    tiles = data.tiles()
    positions = [position for batch in data.order() for position in batch][:count]
    rows = [_row(tiles.picture(index), tiles.views_of(epoch, index), tiles.key(index)[1]) for epoch, index in positions]
    sheet = np.vstack(rows)
    with whole(out) as part:
        part.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    sizes = " and ".join(f"{len(views.blur_p)} views of {views.crop_px} px" for views in tiles.views)
    say(f"{out}: {len(rows)} tiles with {sizes} each")


def _row(tile: NDArray[np.uint8], views: list[NDArray[np.uint8]], key: str) -> NDArray[np.uint8]:
    """A tile and its views, global and then local ones, side by side, each under its caption (H, W, 3)."""
    pictures = {f"{key}, {tile.shape[1]} px": tile}
    for kind, of_size in zip(("view", "local"), views, strict=False):
        pictures |= {f"{kind} {number}": view for number, view in enumerate(of_size, 1)}
    height = max(picture.shape[0] for picture in pictures.values()) + _LINE + _GAP
    return np.hstack([_captioned(picture, caption, height) for caption, picture in pictures.items()])


def _captioned(picture: NDArray[np.uint8], caption: str, height: int) -> NDArray[np.uint8]:
    place = np.full((height, picture.shape[1] + _GAP, 3), 255, np.uint8)
    place[_LINE : _LINE + picture.shape[0], : picture.shape[1]] = picture
    cv2.putText(place, caption, (1, _LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.36, _INK, 1, cv2.LINE_AA)
    return place
