"""Tiles by their number, read out of shards: the views of each, its picture, or its key.

A shard's index is read when its first tile is wanted, and tiles by their place in the file.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from papsmear import seeds
from papsmear.errors import InputError
from papsmear.ssl.augment import Picture, Views
from papsmear.ssl.order import Position
from papsmear.tiling.shards import END_OF_TAR, TILES_A_SHARD, shard_name


@dataclass(frozen=True)
class Shard:
    """A tar of `n_tiles` tiles."""

    path: Path
    n_tiles: int


def find_shards(folder: Path, slide_json: dict[str, object]) -> list[Shard]:
    """A slide's shards. InputError naming the tar where one is missing or cut short."""
    counts = slide_json["counts"]
    assert isinstance(counts, dict)
    found, left = [], int(counts["tiles"])
    for index in range(int(counts["shards"])):
        path = folder / shard_name(str(slide_json["slide_id"]), index)
        try:
            with path.open("rb") as file:
                file.seek(-min(len(END_OF_TAR), path.stat().st_size), 2)
                ends_well = file.read() == END_OF_TAR
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {_remedy(folder)}") from error
        if not ends_well:
            raise InputError(f"{path}: the shard is cut short; {_remedy(folder)}")
        found.append(Shard(path, min(left, TILES_A_SHARD)))
        left -= found[-1].n_tiles
    return found


class Tiles(Dataset[list[Tensor]]):
    """Batches by the positions of their tiles."""

    def __init__(self, shards: list[Shard], views: list[Views], seed: int) -> None:
        self.shards, self.views, self.seed = shards, views, seed
        self.ends = np.cumsum([shard.n_tiles for shard in shards])
        self._members: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, positions: list[Position]) -> list[Tensor]:
        """The views of each tile by their size, (B, views, crop_px, crop_px, 3) uint8."""
        of_tiles = [self.views_of(epoch, index) for epoch, index in positions]
        return [torch.from_numpy(np.stack(of_size)) for of_size in zip(*of_tiles, strict=True)]

    def views_of(self, epoch: int, index: int) -> list[NDArray[np.uint8]]:
        """The views that an epoch shows of a tile by their size, (views, crop_px, crop_px, 3)."""
        picture, rng = self.picture(index), seeds.rng(self.seed, "views", epoch, index)
        return [views(picture, rng) for views in self.views]

    def picture(self, index: int) -> Picture:
        """A tile (H, W, 3)."""
        number, within = self._place(index)
        if number not in self._members:
            self._members[number] = read_index(self.shards[number])
        path, (offset, size) = self.shards[number].path, self._members[number][within]
        with path.open("rb") as file:
            file.seek(offset)
            jpeg = file.read(size)
        try:
            return np.asarray(simplejpeg.decode_jpeg(jpeg), np.uint8)
        except ValueError as error:
            raise InputError(
                f"{path}: the tile at byte {offset} is no JPEG ({error}); {_remedy(path.parent)}"
            ) from error

    def key(self, index: int) -> tuple[str, str]:
        """File name of a tile's shard, and the tile's key in it; this reads the shard's index again."""
        number, within = self._place(index)
        path = self.shards[number].path
        return path.name, members_of(path)[within].name.removesuffix(".jpg")

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the shard, and the tile's place in it, counted from its end: negative."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return number, index - int(self.ends[number])


def members_of(shard: Path) -> list[tarfile.TarInfo]:
    """The JPEG members of a tar."""
    try:
        with tarfile.open(shard, mode="r:") as tar:
            return [member for member in tar if member.name.endswith(".jpg")]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard}: the shard is damaged ({error}); {_remedy(shard.parent)}") from error


def read_index(shard: Shard) -> NDArray[np.int64]:
    """Offset and size in bytes (n_tiles, 2) of the JPEG members of a tar."""
    members = [(member.offset_data, member.size) for member in members_of(shard.path)]
    if len(members) != shard.n_tiles:
        raise InputError(f"{shard.path}: holds {len(members)} tiles, not {shard.n_tiles}; {_remedy(shard.path.parent)}")
    return np.array(members, np.int64).reshape(-1, 2)


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run papsmear tile again; this command again, for shards of a URL"
