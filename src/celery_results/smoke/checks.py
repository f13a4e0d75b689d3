"""What single tasks prove. A check sends, yields, and then collects: so all run in the worker at once.

Each yield hands over to the other checks; a check that has to wait for the clock yields before it waits.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

from celery.result import AsyncResult

from celery_results.smoke import tasks
from celery_results.smoke.outcome import CheckFailed, NotRun

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from celery_results.smoke.session import Session

    Steps = Generator[None, None, str]

_SHORT_LIVED_PATIENCE_SECONDS = 5.0


def expect(expected: object, found: object, what: str) -> None:
    """Fail the check unless both are the same, in type too."""
    if difference := _difference(expected, found, what):
        raise CheckFailed(difference)


def _difference(expected: object, found: object, where: str) -> str:
    if type(expected) is not type(found):
        return f"{where}: expected {type(expected).__name__}, found {type(found).__name__}"
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            return f"{where}: expected the keys {sorted(expected)}, found {sorted(found)}"
        pairs = [(expected[key], found[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{where}: expected {len(expected)} items, found {len(found)}"
        pairs = [
            (one, other, f"{where}[{i}]") for i, (one, other) in enumerate(zip(expected, found, strict=True))
        ]
    else:
        return "" if expected == found else f"{where}: expected {expected!r:.60}, found {found!r:.60}"
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")


def value(session: Session) -> Steps:
    """Store a result and read it back."""
    result = session.send("echo", {"answer": 42})
    yield
    expect({"answer": 42}, session.get(result), "the value")
    expect("SUCCESS", result.state, "the state")
    session.victim = result
    return "stored by the worker, read by the client"


def second_read(session: Session) -> Steps:
    """Read a result that was read before, as another process does."""
    result = session.send("echo", "to be read twice")
    yield
    session.get(result)
    with session.another_app() as app:
        again = AsyncResult(result.id, app=app)
        expect(["SUCCESS", "to be read twice"], [again.state, again.result], "the second reader's view")
    return "a second app reads it too"


def single_read(session: Session) -> Steps:
    """Show that a result reaches whoever sent the task, once, and nobody else."""
    result = session.send("echo", "to be read once")
    yield
    session.get(result)
    with session.another_app() as app:
        again = AsyncResult(result.id, app=app)
        expect("PENDING", again.state, "the second reader's view")
    return "the sender had it, a second reader sees PENDING"


def exception(session: Session) -> Steps:
    """Store a failure with type, arguments and traceback."""
    result = session.send("fail", "expected", 42)
    yield
    try:
        found = session.get(result)
    except tasks.ExpectedFailureError as error:
        expect(["expected", 42], list(error.args), "the exception's arguments")
    else:
        raise CheckFailed(f"get() returned {found!r:.60} instead of raising")
    expect("FAILURE", result.state, "the state")
    if "ExpectedFailureError" not in (result.traceback or ""):
        raise CheckFailed("the stored traceback does not name the exception")
    return f"{tasks.ExpectedFailureError.__name__} raised at the client, traceback stored"


def retry(session: Session) -> Steps:
    """Have a task retried: it passes the broker twice and stores RETRY between."""
    result = session.send("retry_once")
    yield
    expect(1, session.get(result), "the number of retries")
    return "succeeded at the second attempt"


def progress_state(session: Session) -> Steps:
    """See a state of the task's own while the task runs."""
    result = session.send("progress", session.timeout_seconds)
    yield
    seen = session.wait_for(lambda: session.fresh(result.id).state in {"PROGRESS", "SUCCESS", "FAILURE"})
    now = session.fresh(result.id)
    if not seen or now.state != "PROGRESS":
        raise CheckFailed(f"the client saw {now.state}, never PROGRESS")
    expect(tasks.PROGRESS, now.info, "the progress")
    tasks.seen_file(session.directory, result.id).touch()
    yield
    expect(True, session.get(result), "the value after the progress")  # noqa: FBT003 - compared, not a flag
    return "custom state PROGRESS and its meta data seen"


def progress_message(session: Session) -> Steps:
    """Receive a state of the task's own while waiting for the result."""
    states = []

    def take(meta: Mapping[str, Any]) -> None:
        states.append([meta["status"], meta["result"]])
        tasks.seen_file(session.directory, meta["task_id"]).touch()

    # Alone: a message that comes while the app waits for another task is shown to nobody.
    with session.another_app() as app:
        result = app.tasks[f"{tasks.PREFIX}progress"].delay(session.timeout_seconds)
        yield
        expect(True, session.get(result, on_message=take), "the value after the progress")  # noqa: FBT003
    expect(["PROGRESS", tasks.PROGRESS], states[0], "the first message")
    return "get(on_message=...) received PROGRESS"


def forget(session: Session) -> Steps:
    """Have a result removed from the server."""
    result = session.send("echo", "to be forgotten")
    yield
    session.get(result)
    result.forget()
    again = session.fresh(result.id)
    if session.app.backend.task_result_exists(result.id) or again.state != "PENDING":
        raise CheckFailed(f"after forget() the server still says {again.state}")
    return "gone from the server"


def expiry(session: Session) -> Steps:
    """Have the server drop a result by itself."""
    backend = session.app.backend
    kept = getattr(backend, "expires", None)
    if not kept:
        raise NotRun("the settings keep results for ever (result_expires)")
    if not backend.supports_autoexpire:
        raise NotRun("this backend's results are removed by celery beat's cleanup, not by the server")
    task_id = str(uuid.uuid4())
    session.remember(session.fresh(task_id))
    stored = session.send("short_lived", task_id)
    yield
    expect("SUCCESS", session.get(stored), "the state read at once by the worker")
    yield
    yield  # by now nothing else needs the worker, which can end meanwhile
    patience = tasks.SHORT_LIVED_SECONDS + _SHORT_LIVED_PATIENCE_SECONDS
    if not session.wait_for(lambda: not backend.task_result_exists(task_id), patience):
        raise CheckFailed(f"stored for {tasks.SHORT_LIVED_SECONDS} s, still there after {patience:g} s")
    return f"stored for {tasks.SHORT_LIVED_SECONDS} s, then gone; deployed: kept {kept:g} s"


def large_result(session: Session) -> Steps:
    """Store a result of one megabyte."""
    result = session.send("large", 42)
    yield
    found = session.get(result)
    expect(tasks.LARGE_BYTES, len(found["text"]), "the length")
    expect(found["sha256"], hashlib.sha256(found["text"].encode()).hexdigest(), "the digest")
    return f"{tasks.LARGE_BYTES:,} bytes, digest equal"


def json_types(session: Session) -> Steps:
    """Bring every type of JSON back, and what kombu's JSON carries besides."""
    serializer = session.app.conf.result_serializer
    if serializer != "json":
        raise NotRun(f"result_serializer is {serializer}")
    result = session.send("echo", tasks.SAMPLE)
    yield
    expect(tasks.SAMPLE, session.get(result), "the value")
    return f"{len(tasks.SAMPLE)} kinds of values, types kept"
