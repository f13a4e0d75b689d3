"""Stores that go away and come back: tried again for a while, and told when they do not."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Final, TypeVar

from celery_results.backends.database.errors import Fault, explained
from celery_results.errors import CeleryResultsError
from celery_results.migration.errors import CopyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_results.stores.record import Store

T = TypeVar("T")
_WAITS: Final = (0.1, 0.3, 1.0, 2.0, 5.0)
_NAP_SECONDS: Final = 0.1
_POSTGRESQL_FULL: Final = "53100"
_MYSQL_FULL: Final = {1021, 1114}
_REDIS_FULL: Final = ("OOM command not allowed", "MISCONF")


def is_full(error: BaseException) -> bool:
    """Tell whether a server had no room, on its disk or in its memory: each driver says so in its own way."""
    error = getattr(error, "orig", None) or error  # SQLAlchemy wraps them
    number = error.args[0] if error.args else None
    return (
        getattr(error, "sqlstate", None) == _POSTGRESQL_FULL
        or number in _MYSQL_FULL
        or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or any(reason in str(error) for reason in _REDIS_FULL)
    )


class StoppedError(Exception):
    """The end was asked for while a store was away."""


class Patience:
    """For one store: how long it has been away, and what to do about it."""

    def __init__(self, store: Store, place: str, seconds: float, stop: Callable[[], bool]) -> None:
        """Bear an absence of so many seconds."""
        self._store = store
        self._place = place
        self._seconds = seconds
        self._stop = stop
        self._away: float | None = None
        self._attempt = 0

    def answered(self) -> None:
        """Note that it is there."""
        self._away, self._attempt = None, 0

    def bear(self, error: Exception) -> None:
        """Wait before another try; raises what ends the copy, or StoppedError."""
        if isinstance(error, CeleryResultsError):
            raise error
        fault = self._store.fault(error)
        if fault is Fault.FOREIGN:
            raise error
        self._away = self._away or time.monotonic()
        absent = time.monotonic() - self._away
        if fault in {Fault.LOST, Fault.BUSY} and absent < self._seconds:
            self._wait(_WAITS[min(self._attempt, len(_WAITS) - 1)])
            self._attempt += 1
            return
        found = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        expected = f"{self._place} to answer and to allow what a copy does"
        do = "see docs/copy.md for the rights that it needs"
        if is_full(error):
            expected = f"room in {self._place}"
            do = "make room there, on its disk or in its memory (docs/copy.md)"
        raise explained(fault, error) or CopyError(
            expected=expected,
            found=found + (f", for {absent:.0f} s" if absent >= 1 else ""),
            do=f"{do}; run this again, it goes on from where it is",
        ) from error

    def connect(self) -> str:
        """Connect, and give the store's identity; tries as long as there is patience."""
        while True:
            try:
                self._store.connect()
                identity = self._store.identity()
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                self.bear(error)
            else:
                return identity

    def run(self, work: Callable[[], T], again: Callable[[str], None]) -> T:
        """Do what may be done twice; after each new connection `again` sees the store's identity."""
        while True:
            try:
                done = work()
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                self.bear(error)
                again(self.connect())
            else:
                self.answered()
                return done

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop():
                raise StoppedError
            time.sleep(min(left, _NAP_SECONDS))
