"""One function over many items in several processes, results as they come.

Processes are spawned, not forked: forking after OpenCV or OpenSlide started threads can hang.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.process import BaseProcess
from typing import TypeVar

import cv2

from papsmear.errors import UsageError

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[tuple[T, R]]:
    """Yields (item, function(item)) in the order in which they end, from up to `workers` processes.

    With one worker or item it all happens in this process. What the function raises is raised here and the items not
    begun are left; BrokenProcessPool says that a process was killed.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from ((item, function(item)) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        item_of = {pool.submit(function, item): item for item in items}
        for future in as_completed(item_of):
            yield item_of[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def checked_workers(workers: int | None) -> int:
    """How many processes to use: as many as there are processor cores where nothing is said. UsageError below 1."""
    if workers is None:
        return len(os.sched_getaffinity(0))
    if workers < 1:
        raise UsageError(f"--workers={workers}: at least 1 is needed")
    return workers


def _start_worker() -> None:
    """A worker leaves quietly on Ctrl-C, and ends when its parent does: nobody is to write a slide unasked."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
