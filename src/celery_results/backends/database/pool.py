"""A bounded pool of connections in each process: a fork empties it, a restarted server does not upset it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery.exceptions import ImproperlyConfigured

from celery_results.backends.database import fork
from celery_results.backends.database.dialect import driver_for
from celery_results.backends.database.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_results.backends.database.dialect import Driver, Session
    from celery_results.backends.database.url import Address

T = TypeVar("T")
# SQLAlchemy's names, where the meaning is the same. A prefork child runs one task at a time and uses one
# connection; so does a client without threads. It is held for one statement, so four serve many threads.
DEFAULT_SIZE: Final = 4
DEFAULT_TIMEOUT_SECONDS: Final = 30.0
DEFAULT_RECYCLE_SECONDS: Final = 3600.0
# Options of Celery's own class that ask for what this one does always, or that change nothing here.
ACCEPTED: Final = {"pool_pre_ping", "max_overflow", "echo", "echo_pool", "pool_use_lifo", "isolation_level"}


class PoolTimeoutError(TimeoutError):
    """No connection came back in time: more threads than connections, each busy for long."""


@dataclass(frozen=True)
class PoolOptions:
    """What `database_engine_options` may say."""

    size: int = DEFAULT_SIZE
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    recycle_seconds: float = DEFAULT_RECYCLE_SECONDS

    @classmethod
    def of_settings(cls, options: Mapping[str, Any]) -> PoolOptions:
        """Read pool_size, pool_timeout and pool_recycle; raise ImproperlyConfigured for what is not known."""
        known = {"pool_size", "pool_timeout", "pool_recycle", "connect_args"}
        unknown = sorted(set(options) - known - ACCEPTED)
        if unknown:
            raise ImproperlyConfigured(
                f"database_engine_options: expected {', '.join(sorted(known))}, found {', '.join(unknown)}:"
                " this backend has no SQLAlchemy engine; connection parameters go to connect_args or the URL"
            )
        size = int(options.get("pool_size", DEFAULT_SIZE))
        if size < 1:
            raise ImproperlyConfigured(f"database_engine_options: expected pool_size >= 1, found {size}")
        recycle = float(options.get("pool_recycle", DEFAULT_RECYCLE_SECONDS))
        return cls(
            size,
            float(options.get("pool_timeout", DEFAULT_TIMEOUT_SECONDS)),
            recycle if recycle > 0 else float("inf"),
        )


@dataclass(eq=False, slots=True)
class _Pooled:
    session: Session
    born: float


class Pool:
    """At most `size` connections of this process to one database."""

    def __init__(self, driver: Driver, options: PoolOptions) -> None:
        """Connect to nothing yet."""
        self.driver = driver
        self.options = options
        self._begin()
        fork.register(self)

    def _begin(self) -> None:
        self._idle: deque[_Pooled] = deque()
        self._all: set[_Pooled] = set()
        self._free = threading.BoundedSemaphore(self.options.size)

    def run(self, work: Callable[[Session], T]) -> T:
        """Do `work` with a connection; it must bear being done twice.

        A pooled connection may have died while it was idle: then, and only then, the work is done once more
        at once, on a new connection. Raises what `work` or the driver raises, and `PoolTimeoutError`.
        """
        free = self._free
        if not free.acquire(timeout=self.options.timeout_seconds):
            message = (
                f"all {self.options.size} connections of this process stayed busy for"
                f" {self.options.timeout_seconds:g} s: raise pool_size in database_engine_options"
            )
            raise PoolTimeoutError(message)
        try:
            pooled = self._take_idle()
            if pooled is not None:
                try:
                    return self._use(pooled, work)
                except Exception as error:
                    if self.driver.fault(error) not in {Fault.LOST, Fault.READ_ONLY}:
                        raise
                    self.close_idle()
            pooled = _Pooled(self.driver.connect(), time.monotonic())
            self._all.add(pooled)
            return self._use(pooled, work)
        finally:
            free.release()

    def _use(self, pooled: _Pooled, work: Callable[[Session], T]) -> T:
        try:
            outcome = work(pooled.session)
        except BaseException as error:
            # Anything else, such as the exception of a soft time limit, may leave an answer half read.
            if self.driver.fault(error) in {Fault.BUSY, Fault.REFUSED, Fault.MISSING}:
                self._idle.append(pooled)
            else:
                self._discard(pooled)
            raise
        self._idle.append(pooled)
        return outcome

    def _take_idle(self) -> _Pooled | None:
        oldest = time.monotonic() - self.options.recycle_seconds
        while True:
            try:
                pooled = self._idle.pop()
            except IndexError:
                return None
            if pooled.born > oldest and not pooled.session.stale():
                return pooled
            self._discard(pooled)

    def _discard(self, pooled: _Pooled) -> None:
        self._all.discard(pooled)
        with contextlib.suppress(Exception):
            pooled.session.close()

    def close_idle(self) -> None:
        """Close what is not in use."""
        while True:
            try:
                self._discard(self._idle.pop())
            except IndexError:
                return

    def after_fork(self) -> None:
        """Start empty in the child; what the parent has open stays the parent's."""
        inherited = list(self._all)
        self._begin()
        for pooled in inherited:
            fork.keep(pooled.session)


_shared: Final[dict[tuple[str, str], Pool]] = {}


def shared_pool(address: Address, engine_options: Mapping[str, Any]) -> Pool:
    """Give the pool of this process for an address: Celery makes a backend for each thread, all share it."""
    key = (repr(address) + address.password, repr(sorted(engine_options.items())))
    options = PoolOptions.of_settings(engine_options)
    # A pool that loses a race was never connected. No lock, which a fork could copy while it is held.
    made = _shared.get(key) or Pool(driver_for(address, engine_options.get("connect_args")), options)
    return _shared.setdefault(key, made)
