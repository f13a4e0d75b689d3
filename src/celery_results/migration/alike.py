"""Whether two sides hold the same result, as far as a client can tell, and which of two is the more final."""

from __future__ import annotations

import contextlib
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

from celery import states
from kombu.exceptions import DecodeError

from celery_results.backends.database.errors import PickledResultError
from celery_results.backends.dual.points import lists_of

if TYPE_CHECKING:
    from celery_results.backends.dual.points import Point

# Both sides take the time of a result by themselves, one after the other.
TOLERANCE_SECONDS: Final = 5.0
# What only a document has, and what one side may leave out.
_COMPARED: Final = ("status", "traceback")
_OPTIONAL: Final = ("name", "args", "kwargs", "worker", "retries", "queue")
# Of the data: what a driver raises for a server is none of these.
_SENSELESS: Final = (
    DecodeError,
    PickledResultError,
    UnpicklingError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)
# Serializers that need no class of the application to be read.
_PLAIN: Final = frozenset({"json", "msgpack"})


class UnreadableError(Exception):
    """What a side has is no result; the message says why."""


def readable(point: Point, task_id: str) -> dict[str, Any] | None:
    """Read a result; raises UnreadableError where there is something else under its id."""
    try:
        meta = point.read_task(task_id)
        if meta is not None and not isinstance(meta["status"], str):
            raise ValueError("status")  # of the data, not of the caller
    except _SENSELESS as error:
        if point.backend.serializer not in _PLAIN:
            # Perhaps of a class that only the application can import.
            raise UnreadableError("its objects cannot be read here") from error
        raise UnreadableError("no side has it in a form that can be read") from error
    return meta


def equal(one: dict[str, Any], other: dict[str, Any], backend: Any) -> bool:  # noqa: ANN401
    """Compare two metas in the form of one side's serializer; what one of them cannot hold is left out."""
    if any((one.get(name) or None) != (other.get(name) or None) for name in _COMPARED):
        return False
    if lists_of(one.get("children") or []) != lists_of(other.get("children") or []):
        return False
    done = [meta["date_done"] for meta in (one, other)]
    # Celery's own database class also writes a time when an unfinished state is stored again.
    if one["status"] in states.READY_STATES:
        if None in done:
            return False
        if abs((done[0] - done[1]).total_seconds()) > TOLERANCE_SECONDS:
            return False
    names = [name for name in _OPTIONAL if one.get(name) is not None and other.get(name) is not None]
    return all(_same(one[name], other[name], backend) for name in ("result", *names))


def _same(one: Any, other: Any, backend: Any) -> bool:  # noqa: ANN401
    if type(one) is type(other):
        with contextlib.suppress(Exception):
            if one == other:
                return True
    return bool(backend.encode(one) == backend.encode(other))


def rank(meta: dict[str, Any]) -> int:
    """Order states by how final they are."""
    if meta["status"] == states.SUCCESS:
        return 3
    if meta["status"] in states.READY_STATES:
        return 2
    return int(meta["status"] != states.PENDING)
