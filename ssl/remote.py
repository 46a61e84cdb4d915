"""Shards at a URL, which are fetched whole into a local folder before the training: every epoch reads them there.

Whole, and not by the tile: a plain web server gives no ranges of a file, an epoch wants any tile at any time, and
hundreds of epochs would fetch each tile hundreds of times. What is missing is so found before the first step, and a
server that fails later stops no training. fsspec opens the URL: http, s3, gs and what else it has a driver for.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it has no types

from papsmear.errors import InputError, PapsmearError, UsageError
from papsmear.files import disk_full, remove, whole
from papsmear.progress import say, track
from papsmear.tiling.claim import claim
from papsmear.tiling.folder import SLIDE_JSON, cut_short, shards_of
from papsmear.tiling.shards import read_slide_json

CONNECTIONS = 8
SILENT_SECONDS = 60.0  # a web server that sends nothing for so long has failed

T = TypeVar("T")
R = TypeVar("R")


def is_url(shards: str | Path) -> bool:
    """Whether shards lie elsewhere than in a local folder."""
    return "://" in str(shards)


def local_folder(shards: str | Path, cache: Path | None) -> Path:
    """The folder in which shards are read: the given one, or that in `cache` which keeps those of a URL."""
    if not is_url(shards):
        return Path(shards)
    if cache is None:
        raise UsageError(f"{shards}: shards of a URL are kept in a local folder; give one with room: --data.cache=DIR")
    return Path(cache) / quote(str(shards).rstrip("/"), safe="")


def fetch(url: str, folder: Path, slide_ids: Sequence[str]) -> None:
    """Brings the shards of slides into `folder`, laid out as `papsmear tile` does; those that are there stay.

    A slide that was tiled anew is fetched anew. Another process that fetches into the same folder is waited for.
    UsageError where slides are missing or the disk has no room, InputError where a file is not sent, or not whole.
    """
    source = Source(url)
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder, wait=True):
        told = dict(zip(slide_ids, _at_once(source.slide_json, slide_ids, f"{url}: looking"), strict=True))
        if missing := [slide_id for slide_id, text in told.items() if text is None]:
            raise UsageError(
                f"{url}: has no shards of {len(missing)} of the slides: {', '.join(missing)}; give the URL of the "
                "folder that papsmear tile wrote, tile these slides too, or take them out of the list"
            )
        wanted = [shard for slide_id, text in told.items() for shard in _lacks(folder / slide_id, text or b"")]
        if wanted:
            _check_room(folder, sum(size or 0 for _, size in wanted))
            say(f"fetching {len(wanted)} shards of {url} into {folder}")
            _at_once(lambda shard: source.copy(*shard), wanted, f"{url}: fetching")


class Source:
    """The folder at a URL that `papsmear tile` wrote."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        options = {}
        if url.startswith(("http://", "https://")):
            silent = aiohttp.ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
            options["client_kwargs"] = {"timeout": silent}
        try:
            self._files, self._root = url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:  # fsspec says which driver to install
            raise UsageError(f"{url}: {error}") from error

    def slide_json(self, slide_id: str) -> bytes | None:
        """The bytes of a slide's slide.json; None where there is none."""
        name = f"{slide_id}/{SLIDE_JSON}"
        try:
            return bytes(self._files.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:  # each driver has errors of its own
            raise self._failed(name, error) from error

    def copy(self, path: Path, size: int | None) -> None:
        """Fetches a shard of `size` bytes, where that is known, to `path`, the folder of its slide."""
        name = f"{path.parent.name}/{path.name}"
        try:
            with whole(path) as part:
                self._files.get_file(f"{self._root}/{name}", str(part))
                if cut_short(part, size):
                    raise InputError(f"{self.url}/{name}: the shard is cut short; tile that slide again")
        except PapsmearError:
            raise
        except Exception as error:
            if disk_full(error) is not None:
                raise
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: Exception) -> InputError:
        gone = isinstance(error, FileNotFoundError)
        reason = "no such file" if gone else f"{type(error).__name__}: {error}".rstrip(": ")
        remedy = "mend that and start the command again: it goes on from there"
        return InputError(f"{self.url}/{name}: cannot be fetched ({reason}); {remedy}")


def _lacks(folder: Path, slide_json: bytes) -> list[tuple[Path, int | None]]:
    """The shards that a slide's folder has not, or not whole, with their sizes; it is emptied if of another tiling."""
    file = folder / SLIDE_JSON
    if not file.is_file() or file.read_bytes() != slide_json:
        remove(folder)
        with whole(file) as part:
            part.write_bytes(slide_json)
    shards = shards_of(read_slide_json(folder))
    return [(folder / name, size) for name, size in shards if cut_short(folder / name, size)]


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise UsageError(
            f"{folder}: the shards want {n_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; give another --data.cache"
        )


def _at_once(work: Callable[[T], R], items: Sequence[T], what: str) -> list[R]:
    """What `work` gives for each, several at a time; after an error what has not begun is left."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            return list(track(pool.map(work, items), what, len(items)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
