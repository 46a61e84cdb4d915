"""Who writes a slide: locks between processes, on one machine or several, over one output folder.

The lock is `flock` on a hidden file beside what is written. The kernel lets go of it when a process dies, however that
happens, so what a killed run leaves stops nobody. It works on local disks, NFS from version 4 on, and Lustre or GPFS
where they are mounted with it; elsewhere `can_claim` says so.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone may write `path`; that holds until the end of the block.

    False where another process may; with `wait`, its end is waited for. The lock file is gone afterwards.
    """
    lock = lock_of(path)
    descriptor = _locked(lock, wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)  # while it is held: who opened it in between sees that it is gone
        os.close(descriptor)


def lock_of(path: Path) -> Path:
    """The lock file of `path`."""
    return path.with_name(f".{path.name}.lock")


def can_claim(folder: Path) -> bool:
    """Whether the file system of `folder` has locks; tried on a file, so the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "locks"
    try:
        with claim(probe):
            return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock_of(probe).unlink(missing_ok=True)
        return False


def _locked(lock: Path, wait: bool) -> int | None:
    """An open, locked descriptor of the file that has the name `lock` now; None where another process has it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # its owner has ended, and removed it
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
