"""How fast a copy goes: at most a given rate, and slower while the stores answer others slowly."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Of an idle store's usual answer; below the floor nobody notices.
BRAKE_RATIO: Final = 3.0
FLOOR_SECONDS: Final = 0.010
_WINDOW: Final = 20
_SLOWEST: Final = 0.02
_NAP_SECONDS: Final = 0.2
_SETTLE_SECONDS: Final = 5.0
_PERCENTILE: Final = 0.95
# A tenth of what a process of the usual niceness gets, where there is not enough for both.
_NICENESS: Final = 10


def give_way() -> None:
    """Let workers and servers on this host have the processor first, unless somebody chose a niceness."""
    if os.nice(0) == 0:
        os.nice(_NICENESS)


class Brake:
    """Judges how long one store takes to answer.

    The first answers, taken before the copy begins, tell what is usual. While the 95th percentile of the last
    ones is above the limit, the share of the time in which the copy works is halved with every judgement; it
    grows by a tenth of the whole with every one below.
    """

    def __init__(self, name: str, look: Callable[[], Sequence[float]], limit: float | None = None) -> None:
        """Take what gives the latest answers' seconds, and a limit; without one it is found by `settle`."""
        self.name = name
        self.limit = limit
        self.share = 1.0
        self.latest = 0.0
        self.lowest = 1.0
        self._look = look
        self._seen: deque[float] = deque(maxlen=_WINDOW)

    def settle(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Find the limit: BRAKE_RATIO times the usual, at least FLOOR_SECONDS."""
        if self.limit is not None:
            return
        deadline = time.monotonic() + _SETTLE_SECONDS
        while len(self._seen) < _WINDOW and time.monotonic() < deadline:
            wait(_NAP_SECONDS)
            self._seen.extend(self._look())
        # Without an answer the floor is all there is to go by.
        usual = _percentile(self._seen) if self._seen else 0.0
        self.limit = max(FLOOR_SECONDS, BRAKE_RATIO * usual)
        self._seen.clear()

    def judge(self) -> float:
        """Give the share of the time, 0 to 1, that the copy may work."""
        self._seen.extend(self._look())
        if self.limit is not None and len(self._seen) >= _WINDOW // 2:
            self.latest = _percentile(self._seen)
            if self.latest > self.limit:
                self.share = max(_SLOWEST, self.share / 2)
                self.lowest = min(self.lowest, self.share)
            else:
                self.share = min(1.0, self.share + 0.1)
            # Each judgement is of answers of its own.
            self._seen.clear()
        return self.share


class Pace:
    """Pauses between batches."""

    def __init__(
        self,
        rate: float | None = None,
        brakes: Sequence[Brake] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take results a second at most, and brakes; `clock` and `sleep` are for tests."""
        self._rate = rate
        self._brakes = brakes
        self._clock = clock
        self._sleep = sleep
        self._due = clock()
        self._began = clock()
        self.waited = 0.0

    def begin(self) -> None:
        """Note when work on a batch begins."""
        self._began = self._clock()

    def after(self, records: int, stop: Callable[[], bool]) -> None:
        """Wait as long as a batch of so many records asks for, or until the end is wanted."""
        now = self._clock()
        until = now
        if self._rate:
            # Time that was lost before is not made up for: a rate is a limit for the store, not an average.
            self._due = max(self._due, self._began) + records / self._rate
            until = max(until, self._due)
        share = min((brake.judge() for brake in self._brakes), default=1.0)
        until = max(until, now + (now - self._began) * (1 / share - 1))
        while not stop():
            left = until - self._clock()
            if left <= 0:
                break
            self._sleep(min(left, _NAP_SECONDS))
        self.waited += self._clock() - now


def _percentile(values: deque[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * _PERCENTILE))]
