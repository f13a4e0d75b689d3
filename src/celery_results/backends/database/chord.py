"""The header of a chord, read with one query by Celery's own task `celery.chord_unlock`.

That task asks the backend for each result of the header in turn, first whether it is ready, then for its
value, and comes back every `result_chord_retry_interval` until all are. Here its first question counts what
is ready with one query; unless that is all, every answer of this run is PENDING and the task comes back. Else
one query more reads the values. So the task, its errors and its retries are Celery's; only the queries are
fewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery._state import get_current_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

UNLOCK_TASK: Final = "celery.chord_unlock"
_ATTRIBUTE: Final = "_celery_results_header"


class Header:
    """What one run of the task knows of its header."""

    def __init__(self, ids: Sequence[str]) -> None:
        """Know nothing yet."""
        self.ids = frozenset(ids)
        self.metas: dict[str, dict[str, Any]] = {}
        self._asked = False

    def meta(
        self,
        task_id: str,
        count_ready: Callable[[Sequence[str]], int],
        read: Callable[[Sequence[str]], dict[str, dict[str, Any]]],
    ) -> dict[str, Any] | None:
        """Give the result of one task, or None if the header is not ready or has no such task."""
        if not self._asked:
            self._asked = True
            ids = sorted(self.ids)
            if count_ready(ids) == len(ids):
                self.metas = read(ids)
        return self.metas.get(task_id)


def current_header() -> Header | None:
    """Give the header that the running task waits for, or None in any other task and outside of tasks."""
    task = get_current_task()
    if task is None or task.name != UNLOCK_TASK:
        return None
    request = task.request
    header: Header | None = getattr(request, _ATTRIBUTE, None)
    if header is None:
        results = (request.kwargs or {}).get("result")
        if not results:
            return None
        header = Header([task_id for result in results for task_id in leaves(result)])
        setattr(request, _ATTRIBUTE, header)
    return header


def leaves(result: Any) -> Iterator[str]:  # noqa: ANN401 # the nested lists of AsyncResult.as_tuple
    """Give the ids of the tasks in a result or a group of results, as `as_tuple` writes them."""
    (task_id, _parent), children = result
    if children is None:
        yield task_id
    for child in children or ():
        yield from leaves(child)
