"""The application of the dual backend's tests: `celery -A tests.integration.dual_application worker`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery, chord, current_task
from celery.exceptions import Ignore

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE_SECONDS = 60.0


def make(settings: Mapping[str, Any]) -> Celery:  # noqa: C901 # a list of tasks
    """Make the application with these settings."""
    app = Celery("dual", set_as_current=False)
    app.conf.update(settings)

    @app.task(name="dual.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="dual.total", shared=False)
    def total(values: list[Any]) -> int:
        flat = [leaf for value in values for leaf in (value if isinstance(value, list) else [value])]
        return sum(flat)

    @app.task(name="dual.shape", shared=False)
    def shape(values: list[Any]) -> list[Any]:
        return values

    @app.task(name="dual.fail", shared=False)
    def fail(*_: Any) -> None:
        message = "on purpose"
        raise ValueError(message)

    @app.task(name="dual.again", bind=True, max_retries=3, default_retry_delay=0.1, shared=False)
    def again(self: Any) -> int:
        if self.request.retries < 1:
            raise self.retry(exc=KeyError("once"), countdown=0.1)
        return int(self.request.retries)

    @app.task(name="dual.progress", bind=True, shared=False)
    def progress(self: Any) -> None:
        self.update_state(state="PROGRESS", meta={"done": 3})
        raise Ignore

    @app.task(name="dual.ignored", ignore_result=True, shared=False)
    def ignored() -> int:
        return 1

    @app.task(name="dual.hold", shared=False)
    def hold(directory: str, name: str, value: int) -> int:
        """Say that the task runs, and end when it may."""
        place = Path(directory)
        (place / f"{name}.runs").touch()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (place / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return value

    @app.task(name="dual.inside", shared=False)
    def inside() -> str:
        """Start a chord from within a task."""
        header = [app.signature("dual.add", (n, n)) for n in range(3)]
        started = chord(header, app.signature("dual.total"), app=app).apply_async()
        return str(started.id)

    @app.task(name="dual.grow", bind=True, shared=False)
    def grow(self: Any) -> int:
        """Add a task to the chord that this one is part of."""
        self.add_to_chord(app.signature("dual.add", (100, 0)))
        return 1

    @app.task(name="dual.parents", shared=False)
    def parents(*_: Any) -> list[Any]:
        return [current_task.request.root_id, current_task.request.parent_id]

    return app


if "DUAL_SETTINGS" in os.environ:
    app = make(json.loads(Path(os.environ["DUAL_SETTINGS"]).read_text()))
    app.set_default()
