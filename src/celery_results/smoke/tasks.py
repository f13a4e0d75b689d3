"""The tasks that a run sends, and the values they are to bring back."""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import time
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PREFIX = "celery_results.smoke."
LARGE_BYTES = 1_000_000
PROGRESS = {"done": 1, "total": 2}
SHORT_LIVED_SECONDS = 2
_POLL_SECONDS = 0.02

# Every type of JSON, and what kombu's JSON carries besides.
SAMPLE: dict[str, Any] = {
    "null": None,
    "booleans": [True, False],
    "integers": [0, -1, 2**53 + 1, -(2**80)],
    "numbers": [0.1, -1.5e300],
    "strings": [
        "",
        "plain",
        'quotes " and \\ backslash',
        "line\nend",
        "äß€",
        "\U0001d4b3\u200d\U0001f642",
        "\x00",
    ],
    "arrays": [[], [[1], [2, [3]]]],
    "objects": {"": {}, "nested": {"key": [{"deep": None}]}},
    "datetimes": [
        dt.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=dt.UTC),
        dt.datetime(2024, 2, 29, 23, 59, 59),  # noqa: DTZ001 - naive on purpose
    ],
    "date": dt.date(2024, 2, 29),
    "time": dt.time(23, 59, 59, 123456),
    "decimal": Decimal("0.1000000000000000000000000001"),
    "uuid": uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    "bytes": b"\x00\x80\xff bytes",
}


class ExpectedFailureError(Exception):
    """What the failing task raises: a class of our own, which the client has to find by module and name."""


def register(app: Any, directory: Path) -> None:  # noqa: ANN401 - Celery has no types
    """Give the app the tasks; the same names on both sides."""
    for function in (echo, add, multiply, total, fail, large):
        app.task(name=f"{PREFIX}{function.__name__}", shared=False)(function)
    app.task(name=f"{PREFIX}retry_once", bind=True, max_retries=1, shared=False)(retry_once)
    app.task(name=f"{PREFIX}progress", bind=True, shared=False)(_progress_in(directory))
    app.task(name=f"{PREFIX}short_lived", bind=True, shared=False)(short_lived)


def echo(value: object) -> object:
    """Bring the argument back."""
    return value


def add(left: int, right: int) -> int:
    """Add two."""
    return left + right


def multiply(left: int, right: int) -> int:
    """Multiply two."""
    return left * right


def total(numbers: list[int]) -> int:
    """Add all: the body of the chord."""
    return sum(numbers)


def fail(word: str, number: int) -> None:
    """Raise with arguments."""
    raise ExpectedFailureError(word, number)


def large(seed: int) -> dict[str, str]:
    """Give a text that compresses badly, and its digest."""
    # Not for secrets: the text must only be long and dull to compress.
    text = random.Random(seed).randbytes(LARGE_BYTES // 2).hex()  # noqa: S311
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def retry_once(task: Any) -> int:  # noqa: ANN401 - Celery has no types
    """Fail, be retried, and give the number of retries."""
    if task.request.retries == 0:
        raise task.retry(countdown=0)
    retries: int = task.request.retries
    return retries


def seen_file(directory: Path, task_id: str) -> Path:
    """Name the file by which the client tells the task that its progress was seen."""
    return directory / f"seen-{task_id}"


def _progress_in(directory: Path) -> Callable[[Any, float], bool]:
    def progress(task: Any, patience_seconds: float) -> bool:  # noqa: ANN401 - Celery has no types
        """Stay in a state of our own until the client has seen it."""
        task.update_state(state="PROGRESS", meta=PROGRESS)
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            if seen_file(directory, task.request.id).exists():
                return True
            time.sleep(_POLL_SECONDS)
        return False

    return progress


def short_lived(task: Any, task_id: str) -> str:  # noqa: ANN401 - Celery has no types
    """Store a result of that id that the server shall drop soon; give the state read back at once."""
    from celery import Celery  # noqa: PLC0415 - the worker has it already; the module stays cheap to import

    app = Celery("celery_results.smoke.short_lived", set_as_current=False)
    app.config_from_object("celeryconfig")
    app.conf.update(result_expires=SHORT_LIVED_SECONDS)
    app.backend.store_result(task_id, task.name, "SUCCESS")
    state: str = app.backend.get_task_meta(task_id, cache=False)["status"]
    return state
