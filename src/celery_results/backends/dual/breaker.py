"""Leave a mirror alone that does not answer, and let one ask now and then whether it does again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from celery_results.backends.database import fork

if TYPE_CHECKING:
    from collections.abc import Callable

GROWTH: Final = 2.0
LONGEST_SECONDS: Final = 60.0
# Errors that concern one value only, and answers that are slow but in time, open it when they are many.
PATIENCE: Final = 3


class Breaker:
    """Closed: everybody may ask. Open: nobody, until its time is up; then one, who closes or opens it.

    It stays open for `seconds`, twice as long after each try that failed, up to a minute. All threads of a
    process share it.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin closed."""
        self._seconds = seconds
        self._clock = clock
        self.after_fork()
        fork.register(self)

    def after_fork(self) -> None:
        """Begin anew in a child: no thread that could hold the lock, or was trying, is there."""
        self._guard = threading.Lock()
        self._open_until = 0.0
        self._next_seconds = self._seconds
        self._trying = False
        self._weak = 0

    @property
    def closed(self) -> bool:
        """Say whether everybody may ask."""
        return not self._open_until

    def enter(self) -> bool:
        """Say whether this caller may ask; who may must call one of the three below."""
        with self._guard:
            if not self._open_until:
                return True
            if self._trying or self._clock() < self._open_until:
                return False
            self._trying = True
            return True

    def succeeded(self, *, slow: bool = False) -> None:
        """Note an answer; `slow`: in time, but so late that many of these would be a burden."""
        if slow:
            self.doubtful()
            return
        with self._guard:
            self._trying = False
            self._open_until = 0.0
            self._next_seconds = self._seconds
            self._weak = 0

    def doubtful(self) -> None:
        """Note what may concern one value only."""
        with self._guard:
            self._weak += 1
            enough = self._weak >= PATIENCE
            if not enough:
                self._trying = False
        if enough:
            self.failed()

    def failed(self) -> None:
        """Note that the mirror did not answer."""
        with self._guard:
            self._trying = False
            self._weak = 0
            self._open_until = self._clock() + self._next_seconds
            self._next_seconds = min(self._next_seconds * GROWTH, LONGEST_SECONDS)
