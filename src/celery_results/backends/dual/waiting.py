"""Wait for results that either side may get first.

Where every worker surely writes the primary and it alone answers, its own way of waiting is used: Redis
publishes, PostgreSQL notifies. While workers of two stages run, no side is told of everything: then both are
looked at, first after 5 ms, then 1.4 times as long each time, up to `interval`. Timeouts are of the clock,
not of the naps.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, Final

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_results.backends.database.waiting import PollingWait, each_ready, seconds_left

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from celery.result import ResultSet

# How long a wait relies on the primary's notification before it looks at both sides.
SLICE_SECONDS: Final = 1.0
_OPERATION: Final = "The operation timed out."


class WaitingBackend(BaseBackend):  # type: ignore[misc] # Celery has no types
    """What the dual backend does for who waits; it reads through `get_task_meta` and `read_ready`."""

    primary: Any
    notify: bool
    read_fallback: bool

    def read_ready(
        self, task_ids: Collection[str], ready_states: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Give the metas of those of many tasks that are ready."""
        raise NotImplementedError

    @property
    def is_async(self) -> bool:
        """Say whether the primary tells of results by itself."""
        return self.notify and bool(self.primary.is_async)

    @property
    def result_consumer(self) -> Any:  # noqa: ANN401 # Celery has no types
        """Give the primary's, which Celery's fixups and tests look for."""
        return self.primary.result_consumer

    def on_task_call(self, producer: Any, task_id: str) -> Any:  # noqa: ANN401 # Celery's
        """Let the primary listen before the task is sent."""
        return self.primary.on_task_call(producer, task_id) if self.notify else {}

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 # Celery's
        """Have the primary listen for a result."""
        return self.primary.add_pending_result(result, weak=weak) if self.notify else result

    def remove_pending_result(self, result: Any) -> Any:  # noqa: ANN401 # Celery's
        """Have the primary listen no more; an AsyncResult that is collected may do that at any time."""
        if self.notify:
            with contextlib.suppress(Exception):  # a server that is away tells nobody
                self.primary.remove_pending_result(result)
        return result

    def wait_for_pending(  # noqa: PLR0913, PLR0917 # Celery's
        self,
        result: Any,  # noqa: ANN401 # an AsyncResult
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,  # noqa: FBT001, FBT002 # Celery's
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        callback: Callable[..., object] | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002 # Celery's
    ) -> Any:  # noqa: ANN401 # the task's value
        """Wait for one result and give its value; raises its error, or celery.exceptions.TimeoutError."""
        self._ensure_not_eager()
        if not self.notify:
            meta = self.wait_for(result.id, timeout, interval, no_ack, on_interval)
            if on_message is not None:
                on_message(meta)
            result._maybe_set_cache(meta)  # noqa: SLF001 # as Celery's own mixin does
            return result.maybe_throw(propagate=propagate, callback=callback)
        options: dict[str, Any] = {
            "interval": interval,
            "no_ack": no_ack,
            "on_message": on_message,
            "on_interval": on_interval,
            "callback": callback,
            "propagate": propagate,
        }
        if not self.read_fallback:
            return self.primary.wait_for_pending(result, timeout=timeout, **options)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            # The mirror may have it, from before the switch: then nobody will tell.
            if result._maybe_set_cache(self.get_task_meta(result.id))["status"] in states.READY_STATES:  # noqa: SLF001
                return result.maybe_throw(propagate=propagate, callback=callback)
            left = SLICE_SECONDS if end is None else end - time.monotonic()
            try:
                return self.primary.wait_for_pending(
                    result, timeout=max(0.0, min(left, SLICE_SECONDS)), **options
                )
            except CeleryTimeoutError:
                # It may also be the task's own error.
                if result._cache or (end is not None and time.monotonic() >= end):  # noqa: SLF001
                    raise

    def wait_for(  # Celery's
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002 # Celery's
        on_interval: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Look until a task is ready and give its meta; raises celery.exceptions.TimeoutError."""
        self._ensure_not_eager()
        end = None if timeout is None else time.monotonic() + timeout
        wait = PollingWait()
        while True:
            began = time.monotonic()
            meta: dict[str, Any] = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval:
                on_interval()
            wait.pause(seconds_left(end, interval, _OPERATION), time.monotonic() - began)

    def get_many(  # noqa: PLR0913, PLR0917 # Celery's
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002 # Celery's
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
        READY_STATES: Collection[str] = states.READY_STATES,  # noqa: N803 # Celery's
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give (id, meta) of each task as it becomes ready; raises celery.exceptions.TimeoutError.

        Ends early after `max_iterations` looks.
        """
        waiting = set(task_ids)
        end = None if timeout is None else time.monotonic() + timeout
        looks = 0
        wait = PollingWait()
        while waiting:
            began = time.monotonic()
            for task_id, meta in self.read_ready(sorted(waiting), READY_STATES).items():
                waiting.discard(task_id)
                if on_message is not None:
                    on_message(meta)
                yield task_id, meta
            looks += 1
            if not waiting or (max_iterations and looks >= max_iterations):
                return
            if on_interval:
                on_interval()
            seconds = seconds_left(end, interval or 0.5, f"Operation timed out ({timeout})")
            wait.pause(seconds, time.monotonic() - began)

    def iter_native(  # noqa: PLR0913, PLR0917 # Celery's
        self,
        result: ResultSet,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,  # noqa: FBT001, FBT002 # Celery's
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Give (id, meta) of each result of a set as it becomes ready, (id, results) of each group in it."""
        self._ensure_not_eager()
        options: dict[str, Any] = {
            "timeout": timeout,
            "interval": interval,
            "no_ack": no_ack,
            "on_message": on_message,
            "on_interval": on_interval,
        }
        if not result.results:
            return
        if self.notify and not self.read_fallback and self.primary.supports_native_join:
            yield from self.primary.iter_native(result, **options)
            return
        yield from each_ready(result, functools.partial(self.get_many, **options))
