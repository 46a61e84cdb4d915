"""SIGUSR1 and SIGTERM, by which SLURM and others say that a process will be ended: noted, and heeded when it suits.

SLURM sends SIGUSR1 as its warning before the time limit (`--signal=USR1@300`), SIGTERM at a preemption. Without torch,
so that a training can listen from its first moment on.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

told: list[str] = []  # names of the signals that came: they are the process's own, like its handlers


@contextmanager
def noted_signals(then_ignored: bool = False) -> Iterator[None]:
    """Notes the signals that come from here on; at its end their handlers are put back.

    `then_ignored`: they are ignored instead, where the process is about to end. SLURM may send them more than once, and
    one that comes when the work is done and saved must not change the exit status to that of a process that was killed.
    """
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if then_ignored else handler)
        told.clear()


def listen() -> None:
    """Notes them again where a library has put its own handlers in their place."""
    for number in SIGNALS:
        signal.signal(number, _note)


@contextmanager
def unless_told() -> Iterator[None]:
    """For what needs W&B's service, which ends at SIGTERM by itself: after a signal its errors count for nothing."""
    try:
        yield
    except Exception:
        if not told:
            raise


def heed_parent_only() -> None:
    """SIGTERM ends this process, a loading worker, when its parent sends it, and not when SLURM does.

    A worker that dies of that takes its parent along before the checkpoint is written.
    """
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _note(number: int, frame: FrameType | None) -> None:
    told.append(signal.Signals(number).name)
