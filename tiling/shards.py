"""Tiles on disk: WebDataset tars of at most 1,024 tiles, one folder a slide, the same bytes for the same tiles.

A tar is the plain POSIX kind, with no date, user or mode of this machine in it. Any WebDataset reader can use it;
`read_tiles` also tells a tar that was cut short from one that just ends, and a damaged picture by its CRC-32.
"""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from papsmear.errors import InputError, UsageError

TILES_A_SHARD = 1024
META_KEYS = ("slide_id", "x_level0", "y_level0", "size_level0", "size_px", "mpp", "z", "focus")  # readers need these
END_OF_TAR = bytes(1024)
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Tile:
    """One tile: where its top left is, how many level-0 pixels a side it spans, and its picture as JPEG bytes.

    `z` is its height in µm in a slide of several planes, and `z_index` the plane's number where all of them are kept;
    `focus` says how sharp it is (Brenner's measure), `content` on what share of it something lies.
    """

    xy_level0: tuple[int, int]
    size_level0: float
    size_px: int
    mpp: float
    z: float
    focus: float
    content: float
    jpeg: bytes
    z_index: int | None = None

    def key(self, slide_id: str) -> str:
        """The WebDataset key."""
        x, y = self.xy_level0
        return f"{slide_id}_x{x}_y{y}" if self.z_index is None else f"{slide_id}_x{x}_y{y}_z{self.z_index}"

    def meta(self, slide_id: str) -> dict[str, Any]:
        """The sample's json member."""
        x, y = self.xy_level0
        meta = {
            "slide_id": slide_id, "x_level0": x, "y_level0": y, "size_level0": self.size_level0,
            "size_px": self.size_px, "mpp": self.mpp, "z": self.z, "focus": self.focus, "content": self.content,
            "crc32": zlib.crc32(self.jpeg),
        }  # fmt: skip
        if self.z_index is not None:
            meta["z_index"] = self.z_index
        return meta


class ShardWriter:
    """Writes the tiles of one slide into `folder`/<slide_id>-000000.tar and so on; a context manager.

    `shards` says of each finished tar what slide.json keeps of it: name, tiles, bytes and the CRC-32 of all of it.
    """

    def __init__(self, folder: Path, slide_id: str) -> None:
        self.folder, self.slide_id = folder, slide_id
        self.n_tiles = self.n_shards = 0
        self.shards: list[dict[str, Any]] = []
        self._file: io.BufferedWriter | None = None
        self._bytes = self._crc32 = 0

    def write(self, tile: Tile) -> None:
        """Adds one sample, its .jpg and its .json."""
        if self.n_tiles % TILES_A_SHARD == 0:
            self._finish()
            raw = (self.folder / shard_name(self.slide_id, self.n_shards)).open("wb", buffering=0)
            self._file = io.BufferedWriter(raw, BUFFER_BYTES)
            self.n_shards += 1
        key = tile.key(self.slide_id)
        meta = json.dumps(tile.meta(self.slide_id)).encode()
        self._append(b"".join((*_member(f"{key}.jpg", tile.jpeg), *_member(f"{key}.json", meta))))
        self.n_tiles += 1

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._bytes += len(data)
        self._crc32 = zlib.crc32(data, self._crc32)

    def _finish(self) -> None:
        if self._file is None:
            return
        self._append(END_OF_TAR + bytes(-(self._bytes + len(END_OF_TAR)) % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        n_tiles = self.n_tiles - TILES_A_SHARD * (self.n_shards - 1)
        name = shard_name(self.slide_id, self.n_shards - 1)
        self.shards.append({"name": name, "tiles": n_tiles, "bytes": self._bytes, "crc32": self._crc32})
        self._file, self._bytes, self._crc32 = None, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                self._file.raw.close()  # not the buffer: on a full disk its last flush would fail again


# What tarfile writes before a file of mode 644 without date and owner, less its name, size and checksum, which are
# filled in for each member: TarFile.addfile takes as long as decoding the tile.
_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_AFTER_NAME, _AFTER_SIZE, _AFTER_SUM = _HEADER[100:124], _HEADER[136:148], _HEADER[156:]
_SUM = sum(_AFTER_NAME + _AFTER_SIZE + _AFTER_SUM) + 8 * ord(" ")


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding of one file in a tar."""
    in_header, padding = name.encode(), bytes(-len(data) % tarfile.BLOCKSIZE)
    if len(in_header) > tarfile.LENGTH_NAME:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        return member.tobuf(tarfile.PAX_FORMAT), data, padding
    size = b"%011o\0" % len(data)
    checksum = b"%06o\0 " % (_SUM + sum(in_header) + sum(size))
    return in_header.ljust(100, b"\0") + _AFTER_NAME + size + _AFTER_SIZE + checksum + _AFTER_SUM, data, padding


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

    InputError naming the tar where one is missing, cut short or damaged, or a picture has another CRC.
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
            meta = _meta(path, member.name, data)
            if "crc32" in meta and zlib.crc32(jpeg[1]) != meta["crc32"]:
                raise InputError(f"{path}: {stem}.jpg is damaged (its CRC differs); {_remedy(path.parent)}")
            yield meta, jpeg[1]
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
