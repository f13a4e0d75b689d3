"""What a forked child does with the connections that its parent has open: nothing, ever."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from celery_results.backends.database.dialect import Session


class Inheritor(Protocol):
    """Something with connections."""

    def after_fork(self) -> None:
        """Start without any in the child."""


_inheritors: weakref.WeakSet[Inheritor] = weakref.WeakSet()
# Collecting one of these would end the parent's session.
_inherited: Final[list[Session]] = []


def register(inheritor: Inheritor) -> None:
    """Have `inheritor.after_fork` called in every child of this process."""
    _inheritors.add(inheritor)


def keep(session: Session) -> None:
    """Abandon a connection of the parent, and never collect it."""
    _inherited.append(session)
    with contextlib.suppress(Exception):
        session.abandon()


def _after_fork() -> None:
    for inheritor in list(_inheritors):
        inheritor.after_fork()


os.register_at_fork(after_in_child=_after_fork)
