"""What a forked child does with the connections that its parent has open: nothing, ever.

Nor does it wait for a lock that a thread of its parent held: that thread does not exist in the child, and
nobody releases it (fork(2) on the state of mutexes). Two kinds of lock are not ours: the one of a buffered
reader whose thread waits for an answer, which `blind` leaves alone, and those of OpenSSL and SQLite while a
connection is opened, for whose end `held_off` lets a fork wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.backends.database.dialect import Session


# A server that does not answer must not hold a fork up for as long as it holds up who connects to it.
MOST_SECONDS: Final = 1.0


class Inheritor(Protocol):
    """Something with connections."""

    def after_fork(self) -> None:
        """Start without any in the child."""


_inheritors: weakref.WeakSet[Inheritor] = weakref.WeakSet()
# Collecting one of these would end the parent's session.
_inherited: Final[list[Session]] = []


class _Gate:
    """How many threads open a connection; closed while a fork is under way."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        changed = self._changed
        with changed:
            changed.wait_for(lambda: not self._closed, MOST_SECONDS)
            self._inside += 1
        try:
            yield
        finally:
            # Of this process's gate only: a child that is made in here has another.
            if changed is self._changed:
                with changed:
                    self._inside -= 1
                    changed.notify_all()

    def close(self) -> None:
        self._changed.acquire()
        self._closed = True
        self._changed.wait_for(lambda: not self._inside, MOST_SECONDS)

    def open(self) -> None:
        self._closed = False
        self._changed.notify_all()
        self._changed.release()


_gate: Final = _Gate()


def held_off() -> contextlib.AbstractContextManager[None]:
    """Have a fork by another thread wait, for `MOST_SECONDS` at most, until this block is done."""
    return _gate.passed()


def register(inheritor: Inheritor) -> None:
    """Have `inheritor.after_fork` called in every child of this process."""
    _inheritors.add(inheritor)


def keep(session: Session) -> None:
    """Abandon a connection of the parent, and never collect it."""
    _inherited.append(session)
    with contextlib.suppress(Exception):
        session.abandon()


def blind(descriptor: int) -> None:
    """Put /dev/null in the place of a socket: to close it, or the objects upon it, could end the parent's."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, descriptor)
    finally:
        os.close(nowhere)


def _after_fork() -> None:
    _gate.begin()
    for inheritor in list(_inheritors):
        inheritor.after_fork()


os.register_at_fork(before=_gate.close, after_in_parent=_gate.open, after_in_child=_after_fork)
