"""Tiles on disk: WebDataset tars of at most 1,024 tiles, one folder a slide, the same bytes for the same tiles.

A tar is the plain POSIX kind, with no date, user or mode of this machine in it. Any WebDataset reader can use it;
`read_tiles` also tells a tar that was cut short from one that just ends.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from papsmear.errors import InputError, UsageError

TILES_A_SHARD = 1024
META_KEYS = ("slide_id", "x_level0", "y_level0", "size_level0", "size_px", "mpp", "z", "focus")
END_OF_TAR = bytes(1024)


@dataclass(frozen=True)
class Tile:
    """One tile: where its top left is, how many level-0 pixels a side it spans, and its picture as JPEG bytes.

    `z` is its height in µm in a slide of several planes; `focus` the variance of its Laplacian.
    """

    xy_level0: tuple[int, int]
    size_level0: float
    size_px: int
    mpp: float
    z: float
    focus: float
    jpeg: bytes

    def key(self, slide_id: str) -> str:
        """The WebDataset key."""
        return f"{slide_id}_x{self.xy_level0[0]}_y{self.xy_level0[1]}"

    def meta(self, slide_id: str) -> dict[str, Any]:
        """The sample's json member."""
        x, y = self.xy_level0
        values = (slide_id, x, y, self.size_level0, self.size_px, self.mpp, self.z, self.focus)
        return dict(zip(META_KEYS, values, strict=True))


class ShardWriter:
    """Writes the tiles of one slide into `folder`/<slide_id>-000000.tar and so on; a context manager."""

    def __init__(self, folder: Path, slide_id: str) -> None:
        self.folder, self.slide_id = folder, slide_id
        self.n_tiles = self.n_shards = 0
        self._file: io.BufferedWriter | None = None
        self._tar: tarfile.TarFile | None = None

    def write(self, tile: Tile) -> None:
        """Adds one sample, its .jpg and its .json."""
        if self.n_tiles % TILES_A_SHARD == 0:
            self._finish()
            self._file = (self.folder / shard_name(self.slide_id, self.n_shards)).open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (_finish closes it)
            self.n_shards += 1
        key = tile.key(self.slide_id)
        self._add(f"{key}.jpg", tile.jpeg)
        self._add(f"{key}.json", json.dumps(tile.meta(self.slide_id)).encode())
        self.n_tiles += 1

    def _add(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # its date, user and group are 0 and empty
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def _finish(self) -> None:
        if self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._tar = self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.raw.close()  # not the buffer: on a full disk its last flush would fail again


def shard_name(slide_id: str, index: int) -> str:
    """The file name of a slide's `index`-th shard."""
    return f"{slide_id}-{index:06d}.tar"


def slide_folders(shards: Path) -> list[Path]:
    """The folders of the finished slides in `shards`, by name. UsageError where there are none."""
    folders = sorted(file.parent for file in shards.glob("*/slide.json") if not file.parent.name.startswith("."))
    if not folders:
        raise UsageError(f"{shards}: no tiled slides in it; papsmear tile makes them")
    return folders


def read_slide_json(folder: Path) -> dict[str, Any]:
    """A slide's slide.json. InputError where it is missing or broken."""
    file = folder / "slide.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; {_remedy(folder)}") from error
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); {_remedy(folder)}") from error
    if not isinstance(content, dict) or not {"slide_id", "settings", "counts"} <= content.keys():
        raise InputError(f"{file}: not a slide.json of papsmear tile; {_remedy(folder)}")
    return content


def read_tiles(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The samples of one slide, in grid order: what its .json says, and the JPEG bytes.

    InputError naming the tar where one is missing, cut short or damaged.
    """
    slide = read_slide_json(folder)
    left = slide["counts"]["tiles"]
    for index in range(slide["counts"]["shards"]):
        tar = folder / shard_name(slide["slide_id"], index)
        wanted, n_tiles = min(left, TILES_A_SHARD), 0
        for sample in _read_shard(tar):
            yield sample
            n_tiles += 1
        if n_tiles != wanted:
            raise InputError(f"{tar}: the shard holds {n_tiles} tiles instead of {wanted}; {_remedy(folder)}")
        left -= n_tiles


def _read_shard(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    try:
        with path.open("rb") as file:
            file.seek(-min(len(END_OF_TAR), path.stat().st_size), os.SEEK_END)
            if file.read() != END_OF_TAR:
                raise InputError(f"{path}: the shard is cut short; {_remedy(path.parent)}")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield from _samples(path, tar)
    except tarfile.TarError as error:
        raise InputError(f"{path}: the shard is damaged ({error}); {_remedy(path.parent)}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {_remedy(path.parent)}") from error


def _samples(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[dict[str, Any], bytes]]:
    jpeg: tuple[str, bytes] | None = None
    for member in tar:
        stem, _, kind = member.name.rpartition(".")
        content = tar.extractfile(member)
        data = content.read() if content else b""
        if jpeg is None and kind == "jpg":
            jpeg = (stem, data)
        elif jpeg is not None and kind == "json" and stem == jpeg[0]:
            yield _meta(path, member.name, data), jpeg[1]
            jpeg = None
        else:
            raise InputError(f"{path}: {member.name} has no pair, .jpg and .json; {_remedy(path.parent)}")
    if jpeg is not None:
        raise InputError(f"{path}: {jpeg[0]}.jpg has no .json; {_remedy(path.parent)}")


def _meta(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path}: {name} is damaged ({error}); {_remedy(path.parent)}") from error
    if not isinstance(meta, dict) or not set(META_KEYS) <= meta.keys():
        raise InputError(f"{path}: {name} lacks some of {', '.join(META_KEYS)}; {_remedy(path.parent)}")
    return meta


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and run papsmear tile again"
