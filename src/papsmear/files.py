"""Files that appear under their final name only when whole, and their checksums."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a hidden sibling of `path` to write a file or a folder at, and renames it to `path` on success.

    The sibling has one name (`.<name>.part`), so what a killed run left is replaced by the next run. A folder
    replaces a folder. On an error the sibling is removed and `path` stays as it was.
    """
    part = path.with_name(f".{path.name}.part")
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
    finally:
        remove(part)


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
