"""What a check may use: the client's app, the time that is left, and a list of what is to be removed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult

from celery_results import interruption
from celery_results.smoke.application import dispose, stop_waiting
from celery_results.smoke.outcome import CheckFailed
from celery_results.smoke.tasks import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_SECONDS = 0.05
LOOK_AGAIN_SECONDS = 4.0


@dataclass
class Session:
    """One run, seen from the client."""

    app: Any
    directory: Path
    timeout_seconds: float
    # Another app with the same settings, and what removes what it has left on the server.
    make_app: Callable[[], Any]
    # The backend whose server is attacked, of the app's backend, which may be made of two.
    primary: Callable[[Any], Any] = lambda backend: backend
    # A stored result that stays until the end: attacks aim at it, and it may be the witness.
    victim: Any = None
    _deadline: float = 0.0
    _made: list[Any] = field(default_factory=list)

    def start_clock(self) -> None:
        """Begin the time within which every result has to arrive."""
        self._deadline = time.monotonic() + self.timeout_seconds

    def left(self) -> float:
        """Give the seconds left; never nothing, so that what is there already can still be read."""
        return max(0.2, self._deadline - time.monotonic())

    def signature(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - Celery has no types
        """Make a signature of one of our tasks."""
        return self.app.tasks[f"{PREFIX}{name}"].s(*arguments)

    def send(self, work: Any, *arguments: object) -> Any:  # noqa: ANN401 - Celery has no types
        """Send a task by name, or a signature; remember the result for removal."""
        signature = self.signature(work, *arguments) if isinstance(work, str) else work
        return self.remember(signature.apply_async())

    def remember(self, result: Any) -> Any:  # noqa: ANN401 - Celery has no types
        """Have this result removed at the end."""
        self._made.append(result)
        return result

    def get(self, result: Any, **options: object) -> Any:  # noqa: ANN401 - Celery has no types
        """Wait for a result within the time that is left; look at it again where no notice of it comes.

        Celery looks once and then waits for the server's notice. One that never came was seen once in some
        hundred runs. A server that never tells costs a look for each check, and so the time of them all.
        """
        while True:
            left = self.left()
            try:
                return result.get(timeout=min(left, LOOK_AGAIN_SECONDS), interval=POLL_SECONDS, **options)
            except (TimeoutError, CeleryTimeoutError):
                if left > LOOK_AGAIN_SECONDS:
                    continue
                state = getattr(result, "state", "incomplete")
                raise CheckFailed(f"no result within {self.timeout_seconds:g} s: state {state}") from None

    def fresh(self, task_id: str) -> Any:  # noqa: ANN401 - Celery has no types
        """Look at a task through an object that has cached nothing."""
        return AsyncResult(task_id, app=self.app)

    @contextlib.contextmanager
    def another_app(self) -> Iterator[Any]:
        """Give an app that shares nothing with ours but the settings."""
        app = self.make_app()
        try:
            yield app
        finally:
            dispose(app)

    def wait_for(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Poll until the condition holds, or the time is over."""
        deadline = time.monotonic() + (self.left() if seconds is None else seconds)
        while not condition():
            interruption.check()
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def remove_all(self, forget_chord: Callable[[Any, str], None], kept: str = "") -> list[str]:
        """Remove everything that was made but the kept result; give what could not be removed, and why.

        What is left then expires like any result.
        """
        failures = []
        stop_waiting(self.app)
        for result in reversed(self._made):
            if result.id == kept:
                continue
            try:
                self._remove(result, forget_chord)
            except Exception as error:  # noqa: BLE001 - of any backend; the others are to be removed still
                failures.append(f"{result.id}: {type(error).__name__}: {error}")
        self._made.clear()
        self.victim = None
        return failures

    def _remove(self, result: Any, forget_chord: Callable[[Any, str], None]) -> None:  # noqa: ANN401
        header = getattr(result, "parent", None)
        result.forget()
        for group in (result, header):
            if isinstance(group, GroupResult):
                group.forget()
                with contextlib.suppress(NotImplementedError):  # a backend that saves none has none
                    group.delete()
                forget_chord(self.app.backend, group.id)
