"""Reading ahead: an iterator's items made in a thread of its own, so that who makes them and who takes them both work.

What decodes slides and what runs networks let other threads run meanwhile, so one thread is all it takes.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of `make()`, made in a thread at most `size` of them ahead of their use; a context manager.

    What the making raises is raised here, where the item would have come. On leaving, the thread has ended, and what it
    had opened is closed.
    """

    def __init__(self, make: Callable[[], Iterator[T]], size: int) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._error: BaseException | None = None
        self._ended = self._left = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(make,), name="papsmear-ahead")

    def _run(self, make: Callable[[], Iterator[T]]) -> None:
        error: BaseException | None = None
        try:
            for item in make():
                with self._changed:
                    self._items.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._left or len(self._items) < self._size)
                    if self._left:
                        break
        except BaseException as raised:
            error = raised
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()
        self._thread.join()
