"""`papsmear verify`: whether shards still hold what was written into them, by the checksums kept with them.

A shard whose own CRC-32 is the one in slide.json is whole, and each tile in it. One whose CRC differs is read tile by
tile, to name those that are damaged. A damaged slide's folder gets a mark, by which `papsmear tile` makes it again.
"""

import errno
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from papsmear.errors import InputError, UsageError
from papsmear.files import remove, write_text
from papsmear.progress import say, track
from papsmear.tiling import failed
from papsmear.tiling.folder import MARK, OVERVIEW, SLIDE_JSON, cut_short, shards_of
from papsmear.tiling.shards import TILES_A_SHARD, read_slide_json

BLOCK_BYTES = 1 << 20
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def verify(shards: Path) -> int:
    """Checks shards and their tiles by their checksums, and names the damaged ones.

    papsmear tile, started again as before, makes the damaged slides again, and keeps the others.

    Args:
        shards: The folder that papsmear tile wrote.
    """
    folders = _folders(shards)
    damaged, read_only = 0, False
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # zlib computes a CRC outside Python's lock
    try:
        checks = pool.map(lambda folder: list(find_damages(folder)), folders)
        for folder, damages in track(zip(folders, checks, strict=True), "slides", len(folders)):
            damaged += bool(damages)
            for damage in damages:
                say(f"{folder}/{damage}")
            read_only |= not _mark(folder, damages)
    finally:
        pool.shutdown(cancel_futures=True)
    if not damaged:
        say(f"{shards}: {len(folders)} slides checked, all whole")
        return 0
    remedy = "delete those folders" if read_only else "start the same papsmear tile again: it makes those again"
    say(f"{shards}: {len(folders)} slides checked, {damaged} damaged; {remedy}")
    return 1


def _folders(shards: Path) -> list[Path]:
    """The folders of slides, whole or not."""
    if not shards.is_dir():
        raise UsageError(f"{shards}: no such folder; name the one that papsmear tile wrote")
    inside = (folder for folder in sorted(shards.iterdir()) if folder.is_dir() and folder.name != failed.FOLDER)
    folders = [folder for folder in inside if not folder.name.startswith(".") and _is_slide(folder)]
    if not folders:
        raise UsageError(f"{shards}: no tiled slides in it; papsmear tile makes them")
    return folders


def _is_slide(folder: Path) -> bool:
    return (folder / SLIDE_JSON).exists() or any(folder.glob("*-[0-9]*.tar"))


def find_damages(folder: Path) -> Iterator[str]:
    """All that is damaged in a slide's folder, each by its file and what is wrong with it."""
    try:
        slide = read_slide_json(folder)
        shards, left = shards_of(slide), int(slide["counts"]["tiles"])
        crc32_of = {shard["name"]: shard["crc32"] for shard in slide.get("shards", [])}
    except (InputError, KeyError, TypeError) as error:
        yield f"{SLIDE_JSON}: missing or damaged ({error.__cause__ or 'not as papsmear tile writes it'})"
        return
    if not _ends_as_jpeg(folder / OVERVIEW):
        yield f"{OVERVIEW}: missing or cut short"
    for name, size in shards:
        n_tiles = min(left, TILES_A_SHARD)
        left -= n_tiles
        if what := cut_short(folder / name, size):
            yield what
        elif crc32_of.get(name) != _crc32(folder / name):
            damages = [f"{name}: {what}" for what in _damaged_tiles(folder / name, n_tiles)]
            yield from damages or [f"{name}: damaged beside its pictures (its CRC differs)"] * (name in crc32_of)


def _ends_as_jpeg(file: Path) -> bool:
    try:
        return file.read_bytes().endswith(b"\xff\xd9")
    except OSError:
        return False


def _crc32(file: Path) -> int:
    crc32 = 0
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def _damaged_tiles(path: Path, n_tiles: int) -> Iterator[str]:
    """The members of a tar of `n_tiles` that are damaged; where a header is, all that follows it is lost."""
    stem, crc32, found = "its start", 0, 0
    why = "a header is damaged"
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                data = content.read() if content else b""
                name, _, kind = member.name.rpartition(".")
                if kind == "jpg":
                    stem, crc32, found = name, zlib.crc32(data), found + 1
                elif kind != "json" or name != stem or (meta := _parsed(data)) is None:
                    yield f"{member.name} is damaged"
                elif meta.get("crc32", crc32) != crc32:
                    yield f"{stem}.jpg is damaged (its CRC differs)"
    except (tarfile.TarError, OSError) as error:
        why = str(error)
    if found < n_tiles:
        yield f"damaged after {stem}, {n_tiles - found} of {n_tiles} tiles are lost ({why})"


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        meta = json.loads(data)
    except ValueError:
        return None
    return meta if isinstance(meta, dict) else None


def _mark(folder: Path, damages: list[str]) -> bool:
    """Leaves the damages in the folder, or removes what an earlier run left; False where it is read-only."""
    try:
        if damages:
            write_text(folder / MARK, json.dumps(damages, indent=1) + "\n")
        else:
            remove(folder / MARK)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return not damages
    return True
