"""The application under load: `celery -A soak.soak_tasks:app worker`; tests.soak.soak_tasks in the checkout.

Nothing of the bundle is imported. What a task returns follows from its arguments, so that the load knows it
before it sends. A task runs again if its worker is killed, but for one that it was just taking: no fault of a
result backend, see `judgement.undelivered`.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from celery import Celery, chord, current_task, signals
from celery.exceptions import Ignore

from .ledger import brief, note

DIRECTORY = Path(os.environ.get("SOAK_DIRECTORY", "/var/lib/celery/soak"))
LEDGER = DIRECTORY / f"worker-{socket.gethostname()}.jsonl"
# What a killed worker had taken is given to another one after this time.
VISIBILITY_SECONDS = 20

app = Celery("soak")
app.config_from_object("celeryconfig")
app.set_default()
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_track_started=True,
    worker_prefetch_multiplier=1,
    result_chord_retry_interval=0.5,
    broker_transport_options={
        **(app.conf.broker_transport_options or {}),
        "visibility_timeout": VISIBILITY_SECONDS,
    },
)


@app.task(name="soak.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="soak.total")
def total(values: list[int]) -> int:
    return sum(values)


@app.task(name="soak.echo")
def echo(value: Any) -> Any:  # whatever JSON holds
    return value


@app.task(name="soak.slow")
def slow(seconds: float, value: int) -> int:
    time.sleep(seconds)
    return value


@app.task(name="soak.large")
def large(token: str, times: int) -> str:
    return token * times


@app.task(name="soak.failing")
def failing(*arguments: Any) -> None:  # also what a chord gives it
    raise ValueError("on purpose", str(arguments[-1]))


@app.task(name="soak.retrying", bind=True, max_retries=5)
def retrying(self: Any, token: str, times: int) -> list[Any]:  # Celery has no types
    if self.request.retries < times:
        # Celery sends the next attempt before it stores RETRY: on a busy machine that attempt may store its
        # SUCCESS first, which the backend must keep.
        raise self.retry(exc=KeyError(token), countdown=0.2)
    return [token, times]


@app.task(name="soak.stepping", bind=True)
def stepping(self: Any, token: str) -> str:
    for step in range(3):
        self.update_state(state="STEPPING", meta={"step": step})
        time.sleep(0.05)
    return token


@app.task(name="soak.reporting", bind=True)
def reporting(self: Any, token: str) -> None:
    """End in a state of the application's own."""
    self.update_state(state="REPORTED", meta={"token": token})
    note(LEDGER, "stored", id=self.request.id, state="REPORTED", value={"token": token}, began=time.time())
    raise Ignore


@app.task(name="soak.ignored", ignore_result=True)
def ignored(value: int) -> int:
    return value


@app.task(name="soak.starting")
def starting(numbers: list[int], part_ids: list[str], body_id: str) -> str:
    """Start a chord from within a task, so that the worker creates it."""
    header = [add.s(n, n).set(task_id=part) for n, part in zip(numbers, part_ids, strict=True)]
    chord(header, total.s()).apply_async(task_id=body_id)
    return body_id


def own(sender: Any) -> bool:
    return str(sender.name).startswith("soak.")


@signals.task_prerun.connect(weak=False)
def _began(sender: Any, task_id: str, **_: Any) -> None:
    if own(sender):
        sender.request.soak_began = time.time()
        note(LEDGER, "began", id=task_id)


@signals.task_success.connect(weak=False)
def _succeeded(sender: Any, result: Any, **_: Any) -> None:
    """Note what the store has taken: Celery sends this signal after it has stored."""
    if own(sender) and not sender.request.ignore_result and not sender.ignore_result:
        _stored(sender.request.id, "SUCCESS", result)


@signals.task_failure.connect(weak=False)
def _failed(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    if own(sender):
        _stored(task_id, "FAILURE", exception)


def _stored(task_id: str, state: str, value: Any) -> None:
    began = getattr(current_task.request, "soak_began", None) if current_task else None
    note(LEDGER, "stored", id=task_id, state=state, value=brief(value), began=began or time.time())
