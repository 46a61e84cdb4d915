"""Files appear under their final name only when whole."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from papsmear.files import remove, sha256, whole, write_text


def test_a_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with whole(path) as part:
        part.write_text("half")
        assert not path.exists()
        assert part.name.startswith(".")
        assert part.parent == path.parent
    assert path.read_text() == "half"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "make", [lambda part: part.write_text("half"), lambda part: (part / "deep").mkdir(parents=True)]
)
def test_an_error_leaves_what_was_there_and_no_rest(make: object, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    def fail() -> None:
        with whole(path) as part:
            make(part)
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def wrapped(cause: Exception) -> Exception:
    error = RuntimeError("unexpected pos 576 vs 534")
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), errno.EDQUOT),
        (ValueError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),  # safetensors
        (OSError("Can't write data (errno = 28, error message = 'No space left on device')"), errno.ENOSPC),  # HDF5
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), errno.ENOSPC),  # PyTorch
    ],
)
def test_a_full_disk_names_the_file_however_it_is_said(error: Exception, code: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(OSError, match=os.strerror(code)) as caught, whole(path):
        raise error
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert path.read_text() == "before"


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    error = wrapped(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(RuntimeError) as caught, whole(tmp_path / "a"):
        raise error
    assert caught.value is error


def test_a_folder_replaces_a_folder_and_what_a_killed_run_left(tmp_path: Path) -> None:
    path = tmp_path / "shards"
    (path / "old").mkdir(parents=True)
    left = tmp_path / ".shards.part"
    (left / "rest").mkdir(parents=True)
    with whole(path) as part:
        assert part == left
        assert not part.exists()
        part.mkdir()
        (part / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert not left.exists()


def test_a_file_replaces_a_file(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text(tmp_path / "a.json", text)
    assert (tmp_path / "a.json").read_text() == "two"


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    def write_nothing() -> None:
        with whole(tmp_path / "a"):
            pass

    with pytest.raises(FileNotFoundError):
        write_nothing()


def test_remove_takes_a_link_away_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    remove(tmp_path / "link")
    remove(tmp_path / "link")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    remove(tmp_path / "data")
    assert not any(tmp_path.iterdir())


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
