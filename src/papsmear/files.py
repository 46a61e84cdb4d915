"""Files that appear under their final name only when whole, and their checksums.

Every library has its own way of saying that the disk is full; here it becomes the one that Python has for it.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from papsmear.errors import causes

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a hidden sibling of `path` to write a file or a folder at, and renames it to `path` on success.

    The sibling has one name (`.<name>.part`), so what a killed run left is replaced by the next run. A folder
    replaces a folder. On an error the sibling is removed and `path` stays as it was. Where the error is a full disk,
    in whatever words, it is raised as the OSError of a full disk with `path` as its file name.
    """
    part = part_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(part)
    try:
        yield part
        if part.is_file():
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            remove(path)
        part.rename(path)
    except Exception as error:
        code = disk_full(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        remove(part)


def part_of(path: Path) -> Path:
    """Where `whole` writes what will be `path`."""
    return path.with_name(f".{path.name}.part")


def disk_full(error: BaseException) -> int | None:
    """ENOSPC or EDQUOT where an error, or one that it arose from, says that the disk or the quota is full; else None.

    HDF5 and safetensors say so in their message only; PyTorch raises an error of its own over Python's.
    """
    for link in causes(error):
        for code in DISK_FULL:
            if (isinstance(link, OSError) and link.errno == code) or os.strerror(code) in str(link):
                return code
    return None


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file at once."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
