"""Read the results of a group together when a caller goes through them one by one.

`GroupResult.ready()`, `completed_count()` and, at every look, `get()` on a chord's body (it raises the errors
of its parents) ask the backend for each member in turn. The backend knows the members of a chord that this
process sent and of a group that it saved, restored or joined. The first question is answered alone; a second
one for another member right after is taken for such a walk, and one query answers it and all that follow.
Each answer is given once and for `FRESH_SECONDS` at most; who asks for one member again and again always gets
the present.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from celery import states

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEAR_SECONDS: Final = 0.1
FRESH_SECONDS: Final = 0.2
# What a process remembers, in ids over all groups; the oldest groups are forgotten first.
MOST_IDS: Final = 100_000


class _Walk(threading.local):
    """Where one thread is."""

    members: Members | None = None
    task_id: str = ""
    at: float = 0.0
    answers: dict[str, dict[str, Any]]
    until: float = 0.0


class Members:
    """A group: whose results are not yet known to be final."""

    def __init__(self, ids: Sequence[str]) -> None:
        """Take all for unfinished."""
        self.ids = tuple(ids)
        self.pending = set(ids)


class Scanner:
    """The groups that this process knows."""

    def __init__(self) -> None:
        """Know none."""
        self._groups: dict[str, Members] = {}
        self._order: deque[Members] = deque()
        self._count = 0
        self._walk = _Walk()

    def learn(self, ids: Sequence[str]) -> None:
        """Remember a group by its members."""
        if len(ids) <= 1 or any(task_id in self._groups for task_id in (ids[0], ids[-1])):
            return
        members = Members(ids)
        self._order.append(members)
        self._count += len(ids)
        self._groups.update(dict.fromkeys(ids, members))
        while self._count > MOST_IDS and len(self._order) > 1:
            oldest = self._order.popleft()
            self._count -= len(oldest.ids)
            for task_id in oldest.ids:
                self._groups.pop(task_id, None)

    def meta(
        self,
        task_id: str,
        read: Callable[[Sequence[str]], dict[str, dict[str, Any]]],
        absent: Callable[[str], dict[str, Any]],
    ) -> dict[str, Any] | None:
        """Give the meta of a member from a walk, or None if it must be asked for alone."""
        members = self._groups.get(task_id)
        if members is None:
            return None
        walk, now = self._walk, time.monotonic()
        walking = walk.members is members and walk.task_id != task_id and now - walk.at < NEAR_SECONDS
        if walking and now < walk.until and task_id in walk.answers:
            answer = walk.answers.pop(task_id)
        elif walking:
            found = read(sorted(members.pending | {task_id}))
            walk.answers = {other: found.get(other) or absent(other) for other in members.pending | {task_id}}
            members.pending -= {
                other for other, meta in found.items() if meta["status"] in states.READY_STATES
            }
            walk.until = time.monotonic() + FRESH_SECONDS
            answer = walk.answers.pop(task_id)
        else:
            answer = None
            walk.until = 0.0
        walk.members, walk.task_id, walk.at = members, task_id, time.monotonic()
        return answer
