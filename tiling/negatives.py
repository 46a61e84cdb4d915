"""Negative tiles: drawn at random from the shards of negative slides, and copied as they are.

A fold gets as many as it has positive tiles, from all its negative slides alike. Only the tars and members that were
drawn are read: a cohort's shards are hundreds of gigabytes, a labelled set is some thousand tiles.
"""

import json
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from papsmear import seeds
from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.tiling.samples import CropSettings, Picture
from papsmear.tiling.shards import TILES_A_SHARD, read_slide_json, shard_name, slide_folders


@dataclass(frozen=True)
class Source:
    """A negative slide with its shards."""

    slide: Slide
    folder: Path
    n_tiles: int

    @property
    def slide_id(self) -> str:
        """The slide's."""
        return self.slide.slide_id


def find_sources(slides: list[Slide], shards: Path, settings: CropSettings) -> list[Source]:
    """The negative slides that have shards, by slide_id. UsageError where these are tiles of another kind."""
    folders = {folder.name: folder for folder in slide_folders(shards)}
    wanted = {"size_px": settings.size_px, "mpp": settings.mpp, "quality": settings.quality}
    found = []
    for slide in sorted(slides, key=lambda slide: slide.slide_id):
        if slide.label != 0 or slide.slide_id not in folders:
            continue
        folder = folders[slide.slide_id]
        try:
            content = read_slide_json(folder)
        except InputError as error:
            raise UsageError(str(error)) from error
        has = content["settings"]
        differ = [
            f"{name} {has.get(name)} instead of {wanted[name]}" for name in wanted if has.get(name) != wanted[name]
        ]
        if differ:
            raise UsageError(
                f"{folder}: tiled with {', '.join(differ)}; ask for the same here (--size_px, --tile_mpp, --quality),"
                " so that positive and negative tiles are alike"
            )
        found.append(Source(slide, folder, int(content["counts"]["tiles"])))
    return found


def draw(sources: list[Source], wanted: Mapping[int | None, int], seed: int) -> list[tuple[Source, list[int]]]:
    """For each slide which of its tiles to take, by their place in the shards; `wanted` says how many a fold.

    A fold's slides give one tile each in turn, in random order, until there are enough or none is left.
    """
    drawn: dict[str, list[int]] = {}
    for fold, n in wanted.items():
        inside = [source for source in sources if source.slide.fold == fold]
        order = [
            seeds.rng(seed, "negative tiles", source.slide_id).permutation(source.n_tiles)[:n] for source in inside
        ]
        turn = seeds.rng(seed, "turn of negative slides", str(fold)).permutation(len(inside))
        queue = sorted((k, turn[i], i) for i, tiles in enumerate(order) for k in range(len(tiles)))
        for k, _, i in queue[:n]:
            drawn.setdefault(inside[i].slide.slide_id, []).append(int(order[i][k]))
    return [(source, sorted(drawn[source.slide_id])) for source in sources if source.slide_id in drawn]


def copy_tiles(job: tuple[Source, list[int]], out: Path) -> list[Picture] | str:
    """Copies the tiles of these places into `out`, byte for byte; or says which shard is damaged, and leaves none."""
    source, places = job
    copied = []
    try:
        for index in sorted({place // TILES_A_SHARD for place in places}):
            tar = source.folder / shard_name(source.slide_id, index)
            inside = [place % TILES_A_SHARD for place in places if place // TILES_A_SHARD == index]
            for picture, jpeg in _read(tar, inside, source):
                (out / picture.file).write_bytes(jpeg)
                copied.append(picture)
    except InputError as error:
        for picture in copied:
            (out / picture.file).unlink()
        return " ".join(str(error).split())
    return copied


def _read(path: Path, places: list[int], source: Source) -> list[tuple[Picture, bytes]]:
    """The tiles of one shard at `places`; the tar's headers say where each one is."""
    remedy = f"delete the folder {path.parent} and run papsmear tile again"
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            found = []
            for place in places:
                jpeg, meta = members[2 * place : 2 * place + 2]
                if (jpeg.name.removesuffix(".jpg"), ".json") != (meta.name.removesuffix(".json"), meta.name[-5:]):
                    raise ValueError(f"{jpeg.name} is not followed by its .json")
                content, data = json.loads(_content(tar, meta)), _content(tar, jpeg)
                if content.get("crc32", zlib.crc32(data)) != zlib.crc32(data):
                    raise ValueError(f"{jpeg.name} is not what was written")
                found.append((_picture(jpeg.name, content, source), data))
            return found
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: the shard is damaged ({error}); {remedy}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {remedy}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def _picture(name: str, meta: dict[str, float], source: Source) -> Picture:
    slide = source.slide
    corner = (int(meta["x_level0"]), int(meta["y_level0"]))
    size_px, mpp = int(meta["size_px"]), float(meta["mpp"])
    file = f"tiles/negative/{Path(name).name}"
    return Picture(file, slide.slide_id, slide.fold, "negative", 0, corner, meta["size_level0"], size_px, mpp)
