"""Do something that may hang, and wait for it only so long.

No driver bounds everything: libpq waits for an answer without end, a server that is stopped keeps its
connections. So the work is done by a helper thread, and a caller whose time is up goes on without it. The
helper ends, or serves again, when the work does. A process has at most `MOST` helpers at work.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from celery._state import _task_stack, get_current_task

from celery_results.backends.database import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
# As many threads of a pool may write at once; each that hangs keeps one until it ends.
MOST: Final = 64


class LateError(TimeoutError):
    """The work goes on, but nobody waits for it any more."""


class _Job:
    """One piece of work on its way."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.task = get_current_task()
        self.request = self.task.request_stack.top if self.task is not None else None
        self.done = threading.Lock()
        self.done.acquire()
        self.value: Any = None
        self.error: BaseException | None = None

    def do(self, rejoin: Callable[[], None]) -> None:
        """Do it as the task that the caller runs, whose children and parents Celery looks for."""
        try:
            with self._as_caller():
                self.value = self.work()
        except BaseException as error:  # noqa: BLE001 # it belongs to the caller
            self.error = error
        finally:
            rejoin()  # before the caller knows, who may have the next job at once
            self.done.release()

    @contextlib.contextmanager
    def _as_caller(self) -> Iterator[None]:
        if self.task is None or self.request is None:
            yield
            return
        _task_stack.push(self.task)
        self.task.request_stack.push(self.request)
        try:
            yield
        finally:
            self.task.request_stack.pop()
            _task_stack.pop()


class _Helper:
    """A thread that does one job after the other."""

    def __init__(self, owner: Helpers) -> None:
        self._owner = owner
        self._wake = threading.Lock()
        self._wake.acquire()
        self._job: _Job | None = None
        threading.Thread(target=self._serve, name="celery-results-mirror", daemon=True).start()

    def give(self, job: _Job) -> None:
        self._job = job
        self._wake.release()

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            job, self._job = self._job, None
            if job is not None:
                job.do(lambda: self._owner.rejoin(self))
            del job


class Helpers:
    """The helpers of this process; a forked child has none of its parent's."""

    def __init__(self) -> None:
        """Start none yet."""
        self.after_fork()
        fork.register(self)

    def after_fork(self) -> None:
        """Begin anew in a child: threads do not survive a fork."""
        self._free = threading.Semaphore(MOST)
        self._idle: list[_Helper] = []

    def rejoin(self, helper: _Helper) -> None:
        """Take a helper back."""
        self._idle.append(helper)
        self._free.release()

    def run(self, work: Callable[[], T], seconds: float) -> T:
        """Give what `work` gives, or raise what it raises, or LateError after `seconds`."""
        end = time.monotonic() + seconds
        if not self._free.acquire(timeout=seconds):
            raise LateError(f"{MOST} earlier calls have not come back within {seconds:g} s")
        try:
            helper = self._idle.pop()
        except IndexError:
            helper = _Helper(self)
        job = _Job(work)
        helper.give(job)
        if not job.done.acquire(timeout=max(0.0, end - time.monotonic())):
            raise LateError(f"no answer within {seconds:g} s")
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value
