"""Wait for results: told by PostgreSQL's NOTIFY, else by polls that begin dense and grow thin.

A process that waits on PostgreSQL has one listening connection for all its threads, read by one thread of its
own. It is opened by the first wait that has to wait and closed when nobody has waited for `KEEP_SECONDS`.
While it is open it holds the advisory locks of `dialect.LOCKS` shared: a store that can take its lock knows
that nobody listens and sends nothing. Otherwise it sends the task's id after its commit, in a transaction of
its own: in the same one, PostgreSQL would let only one store of the whole server commit at a time (the lock
on database 0 in PreCommit_Notify, src/backend/commands/async.c).

Nothing depends on a notification: each wait also looks every `interval` seconds, as with any other database,
so stores by Celery's own class, a pooler that drops LISTEN or a lost connection cost latency only.
"""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import ResultSet

from celery_results.backends.database import fork
from celery_results.backends.database.dialect import LOCK_SPACE, LOCKS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from celery_results.backends.database.pool import Pool
    from celery_results.backends.database.postgresql import PostgresDriver, PostgresSession

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.005
GROWTH: Final = 1.4
# A look at many ids must not keep the server busy: pause at least so many times as long as it took.
REST: Final = 5.0
# Answers for a group are gathered so long, and read with one query.
GATHER_SECONDS: Final = 0.05
KEEP_SECONDS: Final = 10.0
READ_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 5.0


def seconds_left(end: float | None, interval: float, message: str) -> float:
    """Give the seconds to wait until the next look: `interval`, or less if the wait ends before.

    `end` is of time.monotonic(), None for never; raises celery.exceptions.TimeoutError when it is past.
    """
    if end is None:
        return interval
    left = end - time.monotonic()
    if left <= 0:
        raise CeleryTimeoutError(message)
    return min(interval, left)


def each_ready(
    result: ResultSet, get_many: Callable[[Iterable[str]], Iterable[tuple[str, dict[str, Any]]]]
) -> Iterator[tuple[str, Any]]:
    """Give (id, meta) of each result of a set as it becomes ready, (id, results) of each group in it.

    `get_many` is asked for those only that nobody has read yet.
    """
    waiting: dict[str, list[Any]] = {}
    for node in result.results or ():
        if isinstance(node, ResultSet):
            yield node.id, node.results
        elif node._cache:  # noqa: SLF001 # as Celery's own mixins do
            yield node.id, node._cache  # noqa: SLF001
        else:
            waiting.setdefault(node.id, []).append(node)
    for task_id, meta in get_many(waiting):
        for node in waiting[task_id]:
            node._maybe_set_cache(meta)  # noqa: SLF001
        yield task_id, meta


class Wait(Protocol):
    """One call that waits for some ids."""

    def pause(self, seconds: float, busy_seconds: float) -> Collection[str] | None:
        """Wait at most `seconds`; give the ids to look at, or None for all.

        `busy_seconds` is what the last look took.
        """

    def close(self) -> None:
        """End the wait."""


class PollingWait:
    """Sleep: first 5 ms, then 1.4 times as long each time."""

    def __init__(self) -> None:
        """Begin dense."""
        self._next = FIRST_PAUSE_SECONDS

    def pause(self, seconds: float, busy_seconds: float) -> None:
        """See `Wait`."""
        time.sleep(max(min(seconds, max(self._next, REST * busy_seconds)), 0.0))
        self._next *= GROWTH

    def close(self) -> None:
        """See `Wait`."""


class ListeningWait:
    """Sleep until one of the ids is announced."""

    def __init__(self, listener: Listener, ids: Collection[str]) -> None:
        """Begin to listen at the first pause, so that what is ready costs nothing."""
        self._listener = listener
        self._ids = frozenset(ids)
        self._many = len(self._ids) > 1
        self._polling = PollingWait()
        self._listening = False
        self._event = threading.Event()
        self._guard = threading.Lock()
        self._announced: set[str] = set()

    def pause(self, seconds: float, busy_seconds: float) -> Collection[str] | None:
        """See `Wait`; to begin takes no time, for what was stored before this wait was known."""
        if not self._listening:
            self._listening = self._listener.add(self, self._ids)
            if not self._listening:
                self._polling.pause(seconds, busy_seconds)
            return None
        if not self._event.wait(seconds):
            return None
        if self._many:
            time.sleep(min(seconds, max(GATHER_SECONDS, REST * busy_seconds)))
        with self._guard:
            self._event.clear()
            announced, self._announced = self._announced, set()
        return announced or None

    def announce(self, task_id: str) -> None:
        """Wake this wait for one of its ids; called by the listener's thread."""
        with self._guard:
            self._announced.add(task_id)
            self._event.set()

    def interrupt(self) -> None:
        """Have this wait look at everything and listen anew: its connection has ended."""
        with self._guard:
            self._listening = False
            self._announced = set()
            self._event.set()

    def close(self) -> None:
        """See `Wait`."""
        if self._listening:
            self._listener.remove(self, self._ids)


class Listener:
    """The listening connection of this process to one PostgreSQL database."""

    def __init__(self, driver: PostgresDriver, channel: str) -> None:
        """Connect to nothing yet."""
        self._driver = driver
        self._channel = channel
        self._begin()
        fork.register(self)

    def _begin(self) -> None:
        self._guard = threading.Lock()
        self._waits: dict[str, set[ListeningWait]] = {}
        self._session: PostgresSession | None = None
        self._not_before = 0.0
        self._quiet_since = 0.0

    def add(self, wait: ListeningWait, ids: Collection[str]) -> bool:
        """Announce `ids` to `wait` from now on; say False where listening is not possible."""
        with self._guard:
            if self._session is None:
                if time.monotonic() < self._not_before:
                    return False
                try:
                    self._session = self._open()
                except Exception as error:  # noqa: BLE001 # a wait must not fail for want of a convenience
                    self._not_before = time.monotonic() + RETRY_SECONDS
                    logger.warning("Cannot listen for results, polling instead: %s", error)
                    return False
                threading.Thread(
                    target=self._read, args=(self._session,), name="celery-results-listener", daemon=True
                ).start()
            for task_id in ids:
                self._waits.setdefault(task_id, set()).add(wait)
            return True

    def remove(self, wait: ListeningWait, ids: Collection[str]) -> None:
        """Forget the wait."""
        with self._guard:
            for task_id in ids:
                waits = self._waits.get(task_id)
                if waits is not None:
                    waits.discard(wait)
                    if not waits:
                        del self._waits[task_id]
            self._quiet_since = time.monotonic()

    def _open(self) -> PostgresSession:
        session = self._driver.connect()
        try:
            session.execute(f'LISTEN "{self._channel}"')
            # After LISTEN: whoever finds the locks held must find a listener.
            session.execute(
                f"SELECT pg_advisory_lock_shared({LOCK_SPACE}, n) FROM generate_series(0, {LOCKS - 1}) n"
            )
        except BaseException:
            session.close()
            raise
        return session

    def _read(self, session: PostgresSession) -> None:
        try:
            while self._wanted(session):
                for notice in session.connection.notifies(timeout=READ_SECONDS, stop_after=1):
                    self._dispatch(notice.payload)
        except Exception as error:  # noqa: BLE001 # whatever it is: the waits go on by looking
            logger.info("Lost the listening connection: %s", error)
        finally:
            with self._guard:
                if self._session is session:
                    self._session = None
                waits = {wait for waits in self._waits.values() for wait in waits}
                self._waits.clear()
            with contextlib.suppress(Exception):
                session.close()
            for wait in waits:
                wait.interrupt()

    def _wanted(self, session: PostgresSession) -> bool:
        with self._guard:
            if self._session is not session:
                return False
            if self._waits or time.monotonic() - self._quiet_since < KEEP_SECONDS:
                return True
            self._session = None
            return False

    def _dispatch(self, task_id: str) -> None:
        with self._guard:
            waits = tuple(self._waits.get(task_id, ()))
        for wait in waits:
            wait.announce(task_id)

    def after_fork(self) -> None:
        """Start without a connection in the child; the parent's stays the parent's."""
        inherited = self._session
        self._begin()
        if inherited is not None:
            fork.keep(inherited)


_shared: Final[dict[tuple[int, str], Listener]] = {}


def shared_wait(pool: Pool, channel: str | None, ids: Collection[str]) -> Wait:
    """Begin a wait; all of a process that wait on one database share its listener."""
    if channel is None:
        return PollingWait()
    driver = cast("PostgresDriver", pool.driver)  # no other has a channel
    listener = _shared.get((id(pool), channel)) or Listener(driver, channel)
    return ListeningWait(_shared.setdefault((id(pool), channel), listener), ids)
