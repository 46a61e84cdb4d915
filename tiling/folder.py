"""A tiled slide's folder: whether it is there, all of it, and what the settings of now would make.

This is asked of every slide before a run begins, so it looks at names, sizes and slide.json only. What takes reading
the shards is `papsmear verify`'s; it leaves a mark in the folder of what it finds damaged.
"""

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.shards import END_OF_TAR, read_slide_json, shard_name

OVERVIEW, SLIDE_JSON, MARK = "overview.jpg", "slide.json", "damaged.json"
NOT_THERE = "not there"
END_BYTES = 1 << 16


def why_tile(folder: Path, slide: Slide, settings: TileSettings) -> str | None:
    """Why a slide is to be tiled: NOT_THERE, or what is damaged; None where it is done.

    UsageError where it was tiled with other settings or from another file, or where the folder holds other files.
    """
    if not folder.exists():
        return NOT_THERE
    damage = find_damage(folder)
    if damage is None:
        _check_same(folder, slide, settings)
        return None
    names = re.compile(rf"{OVERVIEW}|{SLIDE_JSON}|{MARK}|{re.escape(folder.name)}-\d{{6,}}\.tar|\..*")
    if others := [file.name for file in sorted(folder.iterdir()) if not names.fullmatch(file.name)]:
        raise UsageError(
            f"{folder}: not whole ({damage}), but not of papsmear tile alone: {others[0]}; move it away or name another"
            " folder with --out"
        )
    return damage


def find_damage(folder: Path) -> str | None:
    """What of a slide's folder is missing, cut short or marked by `papsmear verify`."""
    try:
        slide = read_slide_json(folder)
    except InputError as error:
        return str(error.__cause__ or "no slide.json of papsmear tile")
    if (folder / MARK).exists():
        return "papsmear verify found it damaged"
    if not (folder / OVERVIEW).is_file():
        return f"{OVERVIEW} is missing"
    return next(filter(None, (cut_short(folder / name, size) for name, size in shards_of(slide))), None)


def shards_of(slide: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Names and sizes in bytes of a slide's shards; slide.json tells no sizes where papsmear 0.1 wrote it."""
    names = [shard_name(slide["slide_id"], index) for index in range(slide["counts"]["shards"])]
    size_of = {shard["name"]: shard["bytes"] for shard in slide.get("shards", [])}
    return [(name, size_of.get(name)) for name in names]


def cut_short(tar: Path, size: int | None) -> str | None:
    """What is wrong with a shard's size, or with its end where the size it should have is not known."""
    try:
        found = tar.stat().st_size
        if size is not None:
            return None if found == size else f"{tar.name} has {found} bytes instead of {size}"
        with tar.open("rb") as file:
            file.seek(-min(len(END_OF_TAR), found), os.SEEK_END)
            return None if file.read() == END_OF_TAR else f"{tar.name} is cut short"
    except OSError as error:
        return f"{tar.name}: {error.strerror}"


def _check_same(folder: Path, slide: Slide, settings: TileSettings) -> None:
    found = read_slide_json(folder)
    now, before = dataclasses.asdict(settings), dict(found["settings"])
    if found.get("mpp_from") == "given":
        now["slide mpp"], before["slide mpp"] = slide.mpp, found.get("mpp")
    changed = [f"{name} {before.get(name)} instead of {now[name]}" for name in now if before.get(name) != now[name]]
    was, source = found.get("source", {}), source_of(slide.path)
    if any(was.get(key) != source[key] for key in ("bytes", "sha256_of_ends")):  # by whatever name
        changed.insert(0, f"another slide file than {slide.path}")
    if changed:
        raise UsageError(f"{folder}: made with {', '.join(changed)}; delete it or name another folder with --out")


def source_of(path: Path) -> dict[str, Any]:
    """The name of a slide file, or of a DICOM slide's folder, and what tells it from another one: size and checksum.

    The checksum is of the files' ends: reading all of their bytes would take longer than tiling them.
    """
    checksum, total = hashlib.sha256(), 0
    for source in files_of_slide(path):
        size = source.stat().st_size
        total += size
        with source.open("rb") as file:
            checksum.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            checksum.update(file.read(END_BYTES))
    return {"name": path.name, "bytes": total, "sha256_of_ends": checksum.hexdigest()}


def files_of_slide(path: Path) -> list[Path]:
    """The files of a slide given as a file or, of DICOM, as a folder."""
    files = [path] if path.is_file() else []
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    files += sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return files
