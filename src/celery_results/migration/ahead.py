"""Take from an iterator in a thread, a few items ahead of the one who uses them."""

from __future__ import annotations

import queue
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

T = TypeVar("T")
_LOOK_SECONDS: Final = 0.2


class Ahead(Generic[T]):
    """An iterator whose work is done elsewhere; what it raises is raised to the one who uses it."""

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        """Start; at most `depth` items wait."""
        self._items = items
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="copy-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """Give the items in order."""
        while True:
            what, item = self._queue.get()
            if what == "item":
                yield item  # type: ignore[misc] # an item, as the word before it says
            elif isinstance(item, BaseException):
                raise item
            else:
                return

    def end(self) -> None:
        """Want no more, and wait until the thread has noticed."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            with closing(self._items) as items:
                for item in items:
                    if not self._put(("item", item)):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again by __iter__
            self._put(("end", error))
        else:
            self._put(("end", None))

    def _put(self, entry: tuple[str, T | BaseException | None]) -> bool:
        while not self._over.is_set():
            try:
                self._queue.put(entry, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False
