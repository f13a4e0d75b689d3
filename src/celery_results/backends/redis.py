"""Celery's Redis backend, but no SUCCESS is replaced, no failure on a full server and no notice is lost.

Celery 5.7 never writes over a stored SUCCESS: it reads, and then writes. What another attempt of the task
stores between the two is lost, such as a SUCCESS under the RETRY of the attempt before, which Celery stores
only after it has sent the next one. Seen under load on two busy hosts.

Where maxmemory is reached or the disk of the append-only file is full, Redis refuses writes. Celery 5.7
then gives a task whose value was refused the state FAILURE, and gives up when that small record is refused
as well: the client waits on PENDING for ever. Seen with two workers storing 4 MB results: while one is
refused, the other's buffers hold the memory.

Who waits for a result subscribes to its channel, looks once whether it is there, and then relies on being
told. Celery 5.7 sends both commands at once, on two connections, and Redis owes them no order: under load it
may look first, then store and publish what a worker sends, then subscribe, and the client waits for ever.
After a lost connection Celery looks before it subscribes anew, with the same gap.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from celery import states
from celery.backends.redis import RedisBackend as CeleryRedisBackend
from celery.backends.redis import ResultConsumer as CeleryResultConsumer
from celery.exceptions import BackendStoreError
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import OutOfMemoryError, ResponseError

if TYPE_CHECKING:
    from redis.client import PubSub
    from redis.commands.core import Script

# A whole transaction is refused with EXECABORT and the reason behind it, which is no OutOfMemoryError then.
_FULL: Final = ("OOM command not allowed", "MISCONF")
# What Celery does in a transaction, unless the key holds something else than the caller has read: then that
# is the answer. Nothing there is PENDING, which anything may follow. Bytes are compared, so that serializer
# and compression do not matter. SET comes first: what is refused must not be published.
_REPLACE: Final = """
local key, value, expires, read = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local stored = redis.call('GET', key)
if stored and stored ~= read then return stored end
if expires == '0' then redis.call('SET', key, value)
else redis.call('SET', key, value, 'EX', expires) end
redis.call('PUBLISH', key, value)
"""
# So often may others have been faster: a task has few attempts at a time, and each stores few states.
_ROUNDS: Final = 10


def is_full(refusal: ResponseError) -> bool:
    """Tell whether the server refused a write, or a transaction of writes, for want of memory or disk."""
    return isinstance(refusal, OutOfMemoryError) or any(reason in str(refusal) for reason in _FULL)


class ServerFullError(ResponseError):
    """The server refused to record a failure for want of memory or disk; room may come back."""


class ResultConsumer(CeleryResultConsumer):  # type: ignore[misc] # Celery has no types
    """Look once more as soon as the server has confirmed a subscription: what comes later is told."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 # Celery's
        """Take what Celery's takes."""
        super().__init__(*arguments, **options)
        self._confirmed: set[bytes] = set()

    def start(self, initial_task_id: str, **options: object) -> None:
        """Subscribe to the first result."""
        with self._locked():
            super().start(initial_task_id, **options)
            self._pubsub.ignore_subscribe_messages = False

    def _reconnect_pubsub(self) -> None:
        with self._locked():
            super()._reconnect_pubsub()
            self._pubsub.ignore_subscribe_messages = False

    def _drain_one(self, pubsub: PubSub, timeout: float | None) -> bool:
        """Do as Celery does, and with what it throws away; tell whether there was anything to do."""
        with self.reconnect_on_error():
            connection = pubsub.connection
            # Not under redis-py's own wait: data that TLS has decrypted is invisible to poll().
            if not (pubsub.subscribed and connection is not None and connection.can_read(timeout=0)):
                return self._look_again()
            message = pubsub.get_message(timeout=timeout)
            if message and message["type"] == "message":
                self.on_state_change(self._decode_result(message["data"]), message)
            elif message and message["type"] == "subscribe":
                self._confirmed.add(message["channel"])
        return True

    def _look_again(self) -> bool:
        """Read at once all whose subscriptions were confirmed since, and give who waits what is ready."""
        keys, self._confirmed = sorted(self._confirmed & self.subscribed_to), set()
        if not keys:
            return False
        for value in filter(None, self.backend.client.mget(keys)):
            meta = self._decode_result(value)
            if meta["status"] in states.READY_STATES:
                self.on_state_change(meta, None)
        return True


class RedisBackend(CeleryRedisBackend):  # type: ignore[misc] # Celery has no types
    """Never replace a stored SUCCESS, and retry the record of a failure until the server has room.

    That is retried as often as result_backend_max_retries says. A value that is refused is not: it would keep
    the worker busy, and may never fit. Its task fails at once, with OutOfMemoryError or MISCONF as the
    reason, and it is that failure which is retried.
    """

    ResultConsumer = ResultConsumer

    def _store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: str | None = None,
        request: object = None,
        **_: object,
    ) -> object:
        try:
            self._replace_unless_final(task_id, result, state, traceback, request)
        except ResponseError as refusal:
            if is_full(refusal) and state in states.EXCEPTION_STATES:
                raise ServerFullError(str(refusal)) from refusal
            raise
        except BackendStoreError as refusal:
            raise BackendStoreError(str(refusal), state=state, task_id=task_id) from refusal
        return result

    def _replace_unless_final(
        self, task_id: str, result: object, state: str, traceback: str | None, request: object
    ) -> None:
        """Store as celery/backends/base.py does, but decide anew when the result has changed meanwhile."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)  # type: ignore[no-untyped-call] # kombu has no types
        key = self.get_key_for_task(task_id)
        stored: bytes | str | None = self.get(key)
        if self._is_final(stored):
            return
        value = self.encode(meta)
        if isinstance(value, str) and len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError("value too large for Redis backend")
        expires = self.failure_expires if state == states.FAILURE else self.expires
        for _ in range(_ROUNDS):
            stored = self.ensure(self._replace, (key, value, expires, stored))
            if stored is None or self._is_final(stored):
                return
        self._set_with_state(key, value, state)

    def _is_final(self, stored: bytes | str | None) -> bool:
        return bool(stored) and self.decode(stored)["status"] == states.SUCCESS

    @cached_property
    def _replace_script(self) -> Script:
        return self.client.register_script(_REPLACE)  # type: ignore[no-any-return] # Celery has no types

    def _replace(
        self, key: bytes, value: bytes | str, expires: int | None, read: bytes | str | None
    ) -> bytes | str | None:
        """Write and publish in one round trip, or give what is stored instead of `read`."""
        arguments = [value, expires or 0] if read is None else [value, expires or 0, read]
        stored: bytes | str | None = self._replace_script([key], arguments, client=self.client)
        return stored

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Tell Celery to try again after `exc`; a refused write was not written."""
        return isinstance(exc, ServerFullError) or bool(super().exception_safe_to_retry(exc))
