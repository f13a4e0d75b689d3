"""Celery's Redis backend, which also records a failure on a server that is full.

Where maxmemory is reached or the disk of the append-only file is full, Redis refuses writes. Celery 5.7
then gives a task whose value was refused the state FAILURE, and gives up when that small record is refused
as well: the client waits on PENDING for ever. Seen with two workers storing 4 MB results: while one is
refused, the other's buffers hold the memory.
"""

from __future__ import annotations

from typing import Final

from celery import states
from celery.backends.redis import RedisBackend as CeleryRedisBackend
from redis.exceptions import OutOfMemoryError, ResponseError

# A whole transaction is refused with EXECABORT and the reason behind it, which is no OutOfMemoryError then.
_FULL: Final = ("OOM command not allowed", "MISCONF")


def is_full(refusal: ResponseError) -> bool:
    """Tell whether the server refused a write, or a transaction of writes, for want of memory or disk."""
    return isinstance(refusal, OutOfMemoryError) or any(reason in str(refusal) for reason in _FULL)


class ServerFullError(ResponseError):
    """The server refused to record a failure for want of memory or disk; room may come back."""


class RedisBackend(CeleryRedisBackend):  # type: ignore[misc] # Celery has no types
    """Retry the record of a failure until the server has room, as often as result_backend_max_retries says.

    A value that is refused is not retried: it would keep the worker busy, and may never fit. Its task fails
    at once, with OutOfMemoryError or MISCONF as the reason, and it is that failure which is retried.
    """

    def _store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: str | None = None,
        request: object = None,
        **kwargs: object,
    ) -> object:
        try:
            stored: object = super()._store_result(task_id, result, state, traceback, request, **kwargs)
        except ResponseError as refusal:
            if is_full(refusal) and state in states.EXCEPTION_STATES:
                raise ServerFullError(str(refusal)) from refusal
            raise
        return stored

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Tell Celery to try again after `exc`; a refused write was not written."""
        return isinstance(exc, ServerFullError) or bool(super().exception_safe_to_retry(exc))
