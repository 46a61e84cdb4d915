"""`papsmear embed`: shards to feature bags, one HDF5 file a slide.

JPEG decoding runs in threads some batches ahead of the network, so that neither waits for the other. `embed_tiles` is
all that happens between a tile's JPEG and its feature; `papsmear diagnose` goes through it too, so both give the same.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.files import sha256
from papsmear.mil.bags import (
    BagCard,
    read_attribute,
    read_card,
    read_encoder_card,
    write_bag,
    write_encoder_card,
)
from papsmear.mil.colour import ColourCounts, written
from papsmear.mil.scope import sharpness
from papsmear.progress import say, track
from papsmear.ssl.encoder import Encoder, embed_images, load_encoder
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.shards import read_slide_json, read_tiles, slide_folders

XY = tuple[int, int]
AHEAD = 4  # batches being decoded while the network works on one


def embed(shards: Path, encoder: str, out: Path, batch_size: int = 64) -> int:
    """Turns the tiles of every slide into a bag of features.

    Goes on where it stopped: a bag that this encoder made from the same tiles is kept.

    Args:
        shards: The folder that `papsmear tile` filled.
        encoder: A name (timm:ARCHITECTURE, hf-hub:REPOSITORY, random:ARCHITECTURE) or a .safetensors file.
        out: The folder for the bags; one encoder a folder.
        batch_size: Tiles that go through the network at once.
    """
    if batch_size < 1:
        raise UsageError(f"--batch_size={batch_size}: at least 1 tile must go through the network at once")
    folders = slide_folders(shards)
    network = load_encoder(encoder)
    _claim(out, network)
    failed = []
    kept = 0
    for folder in track(folders, "embedding slides"):
        file = out / f"{folder.name}.h5"
        try:
            if _is_current(file, folder, network):
                kept += 1
            else:
                _embed_slide(folder, network, file, batch_size)
        except InputError as error:
            failed.append(str(error))
    say(f"{out}: {len(folders) - len(failed)} bags of {network.width} features a tile ({kept} were there already)")
    if failed:
        say(f"{len(failed)} of {len(folders)} slides failed:")
        for reason in failed:
            say(f"  {reason}")
    return 1 if failed else 0


def embed_tiles(
    encoder: Encoder, tiles: Iterable[tuple[XY, bytes]], batch_size: int = 64, colours: ColourCounts | None = None
) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """Features (N, D) float16 and top-left corners (N, 2) int32 in level-0 pixels of N tiles, in their order.

    Args:
        encoder: The frozen network.
        tiles: Pairs of (x, y) in level-0 pixels and the tile as JPEG bytes.
        batch_size: Tiles that go through the network at once.
        colours: Where the tiles' colours are counted.

    Raises:
        InputError: for a tile that is not a JPEG, and for features that float16 cannot hold.
    """
    corners: list[XY] = []
    images = _decoded(tiles, corners, AHEAD * batch_size)
    features = embed_images(encoder, colours.counting(images) if colours else images, batch_size)  # (N, D)
    largest = float(np.abs(features).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise InputError(
            f"encoder {encoder.card.name}: a feature of {largest:.3g} is beyond what bags hold (float16, 65,504); "
            "take an encoder whose last layer is normalised"
        )
    return features.astype(np.float16), np.array(corners, np.int32).reshape(-1, 2)


def _decoded(tiles: Iterable[tuple[XY, bytes]], corners: list[XY], ahead: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles as pixels, decoded in threads `ahead` of their use; their corners are appended to `corners`."""
    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for xy_level0, jpeg in tiles:
            corners.append(xy_level0)
            waiting.append(pool.submit(_pixels, xy_level0, jpeg))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(xy_level0: XY, jpeg: bytes) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB")
    except ValueError as error:
        raise InputError(
            f"tile at x={xy_level0[0]} y={xy_level0[1]}: damaged JPEG ({error}); tile the slide again"
        ) from error
    return pixels


def _claim(out: Path, encoder: Encoder) -> None:
    """Writes the encoder's card into `out`; a UsageError where bags of another encoder lie there."""
    card = read_encoder_card(out)
    if card is None and any(out.glob("*.h5")):
        raise UsageError(f"{out}: holds bags that papsmear did not make; use another --out")
    if card is not None and card.sha256 != encoder.card.sha256 and any(out.glob("*.h5")):
        raise UsageError(
            f"{out}: holds bags of encoder {card.name} (checksum {card.sha256[:12]}), not of {encoder.card.name} "
            f"({encoder.card.sha256[:12]}); use another --out"
        )
    write_encoder_card(out, encoder.card)


def _is_current(file: Path, folder: Path, encoder: Encoder) -> bool:
    """Whether the bag is there, whole, and made by this encoder from these tiles."""
    if not file.is_file():
        return False
    try:
        card, source = read_card(file), read_attribute(file, "slide_json_sha256")
    except InputError:
        return False
    same = card is not None and card.encoder_sha256 == encoder.card.sha256
    return same and source == sha256(folder / "slide.json")


def _embed_slide(folder: Path, encoder: Encoder, file: Path, batch_size: int) -> None:
    metas: list[dict[str, Any]] = []
    colours = ColourCounts()
    try:
        features, xy_level0 = embed_tiles(encoder, _tiles(folder, metas), batch_size, colours)
        source = sha256(folder / "slide.json")
    except InputError as error:
        raise InputError(f"{folder.name}: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{folder.name}: {error.filename} is missing; tile the slide again") from error
    if not metas:
        raise InputError(f"{folder.name}: {folder} holds no tiles; tile the slide again")
    first, settings = metas[0], read_slide_json(folder)["settings"]
    card = BagCard(
        encoder=encoder.card.name,
        encoder_sha256=encoder.card.sha256,
        tiles=TileSettings.from_json({**settings, "size_px": int(first["size_px"]), "mpp": float(first["mpp"])}),
        size_level0=float(first["size_level0"]),
    )
    focus = sharpness([float(meta["focus"]) for meta in metas])
    colour = {"light": written(colours.light()), "stain": written(colours.stain())}
    write_bag(file, features, xy_level0, card, slide_json_sha256=source, focus=f"{focus:.3f}", **colour)


def _tiles(folder: Path, metas: list[dict[str, Any]]) -> Iterator[tuple[XY, bytes]]:
    """The tiles of a slide folder for `embed_tiles`; their metadata are appended to `metas`."""
    for meta, jpeg in read_tiles(folder):
        metas.append(meta)
        yield (int(meta["x_level0"]), int(meta["y_level0"])), jpeg
