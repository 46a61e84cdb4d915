"""Tiles out of the shards of labelled slides: canvases to paste cells on, drawn at random, and the tiles to test on.

Both are kept as JPEG bytes and decoded when looked at; some thousands of them fit into memory that way.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import simplejpeg

from papsmear import seeds
from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.probes.knn import Ints
from papsmear.probes.pasting import Tile
from papsmear.ssl.tiles import find_shards, read_index
from papsmear.tiling.shards import read_slide_json, slide_folders


class JpegTiles(Sequence[Tile]):
    """Tiles (H, W, 3) uint8, decoded each time one is asked for."""

    def __init__(self, jpegs: Sequence[bytes]) -> None:
        self.jpegs = jpegs

    def __len__(self) -> int:
        return len(self.jpegs)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> "JpegTiles": ...
    def __getitem__(self, index: int | slice) -> "Tile | JpegTiles":
        if isinstance(index, slice):
            return JpegTiles(self.jpegs[index])
        return np.asarray(simplejpeg.decode_jpeg(self.jpegs[index]), np.uint8)


@dataclass(frozen=True)
class SlideTiles:
    """N tiles, the slide of each, and their labels (N,): those of the slides, or of the tiles where these have one."""

    tiles: JpegTiles
    slide_ids: tuple[str, ...]
    labels: Ints
    mpp: float

    def groups(self) -> Ints:
        """The slide of each tile (N,), counted from 0."""
        return np.unique(self.slide_ids, return_inverse=True)[1].astype(np.int64)


def draw_canvases(shards: Path, slides: Sequence[Slide], count: int, seed: int) -> SlideTiles:
    """`count` random tiles of positive slides, then as many of negative ones; all there are, where there are fewer.

    Every tile of a side is equally likely. Raises UsageError where a side has no tiled slide.
    """
    folders = {folder.name: folder for folder in slide_folders(shards)}
    jpegs: list[bytes] = []
    slide_ids: list[str] = []
    labels: list[int] = []
    mpps = set()
    for label in (1, 0):
        tiled = [folders[slide.slide_id] for slide in slides if slide.label == label and slide.slide_id in folders]
        if not tiled:
            side = "positive" if label else "negative"
            raise UsageError(f"{shards}: no shards of a {side} slide outside the tested fold; tile some, or split anew")
        jsons = {folder: read_slide_json(folder) for folder in tiled}
        mpps |= {float(content["settings"]["mpp"]) for content in jsons.values()}
        found = [shard for folder, content in jsons.items() for shard in find_shards(folder, content)]
        starts = np.cumsum([0, *(shard.n_tiles for shard in found)])
        chosen = np.sort(seeds.rng(seed, "canvases", label).permutation(starts[-1])[:count])
        for shard, start, end in zip(found, starts, starts[1:], strict=False):
            places = chosen[(chosen >= start) & (chosen < end)] - start
            if len(places):
                offsets = read_index(shard)[places]  # (n, 2): offset and size
                with shard.path.open("rb") as file:
                    jpegs += [os.pread(file.fileno(), int(size), int(offset)) for offset, size in offsets]
                slide_ids += [shard.path.parent.name] * len(places)
        labels += [label] * len(chosen)
    if len(mpps) > 1:
        raise UsageError(
            f"{shards}: slides were tiled at different µm/px ({', '.join(map(str, sorted(mpps)))}); tile all at one"
        )
    return SlideTiles(JpegTiles(jpegs), tuple(slide_ids), np.array(labels, np.int64), mpps.pop())


def read_labelled_tiles(file: Path) -> tuple[SlideTiles, dict[str, str]]:
    """The tiles that `papsmear crop` listed in `file` (tiles.csv), and why some could not be read, by their name.

    Raises UsageError where it is no such list, InputError where no tile can be read.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        listed = [(row["file"], row["slide_id"], int(row["label"]), float(row["mpp"])) for row in rows]
    except OSError as error:
        raise UsageError(f"{file}: cannot read the tiles: {error.strerror}; papsmear crop makes them") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: not a tiles.csv of papsmear crop ({error}); give SETS/tiles.csv") from error
    mpps = sorted({mpp for *_, mpp in listed})
    if len(mpps) > 1:
        raise UsageError(f"{file}: tiles of several µm/px ({', '.join(map(str, mpps))}); crop them all at one")
    kept, damaged = [], {}
    for name, slide_id, label, mpp in listed:
        try:
            jpeg = (file.parent / name).read_bytes()
            simplejpeg.decode_jpeg(jpeg)
        except (OSError, ValueError) as error:
            damaged[name] = error.strerror or "" if isinstance(error, OSError) else "not a whole JPEG"
            continue
        kept.append((jpeg, slide_id, label, mpp))
    if not kept:
        raise InputError(f"{file}: none of its {len(listed)} tiles can be read; run papsmear crop again")
    jpegs, slide_ids, labels, mpp_of = zip(*kept, strict=True)
    return SlideTiles(JpegTiles(jpegs), slide_ids, np.array(labels, np.int64), mpp_of[0]), damaged


def of_fold(tiles: SlideTiles, slides: Mapping[str, Slide], fold: int) -> SlideTiles:
    """The tiles of a fold's slides. Raises UsageError where both labels are not among them."""
    inside = [i for i, slide_id in enumerate(tiles.slide_ids) if slides[slide_id].fold == fold]
    labels = tiles.labels[inside]
    if len(np.unique(labels)) < 2:
        count = f"{int(labels.sum())} positive and {int((labels == 0).sum())} negative"
        raise UsageError(f"--tiles: fold {fold} has {count} tiles to test on; it takes both; crop more, or split anew")
    jpegs = [tiles.tiles.jpegs[i] for i in inside]
    return SlideTiles(JpegTiles(jpegs), tuple(tiles.slide_ids[i] for i in inside), labels, tiles.mpp)
