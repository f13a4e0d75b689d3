"""What the tests of celery_results.backends.database share: apps, counted statements, patience."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.task import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.integration.database_lab import Database

OURS = "celery_results.backends.database:DatabaseBackend+"
STOCK = "db+"
PATIENCE_SECONDS = 20.0


def app_on(url: str, prefix: str = OURS, **conf: Any) -> Celery:
    """Make an app whose results go to `url`; the broker is in this process's memory."""
    app = Celery("case", set_as_current=False)
    settings = {
        "broker_url": "memory://",
        "broker_transport_options": {"polling_interval": 0.005},
        "result_backend": prefix + url,
        "result_cache_max": -1,
        "database_create_tables_at_setup": False,
    }
    app.conf.update({**settings, **conf})
    return app


def backend_on(database: Database, prefix: str = OURS, login: str = "worker", **conf: Any) -> Any:
    return app_on(database.url(login), prefix, **conf).backend


def request(children: Sequence[Any] = (), **changes: Any) -> Context:
    """Give the request of a running task with all that result_extended stores."""
    context = Context(
        {
            "id": "t",
            "task": "proj.add",
            "args": [1, {"a": None}],
            "kwargs": {"k": "ä"},
            "hostname": "worker@host",
            "retries": 2,
            "delivery_info": {"routing_key": "fast"},
            "stamped_headers": ["trace"],
            "stamps": {"trace": "abc"},
            **changes,
        }
    )
    context.children.extend(children)
    return context


@contextlib.contextmanager
def counted(backend: Any) -> Iterator[list[str]]:
    """Record every statement that any connection of this backend's pool executes."""
    statements: list[str] = []
    kind = type(_session(backend))
    original = kind.execute

    def execute(self: Any, statement: str, parameters: Any = ()) -> Any:
        statements.append(statement)
        return original(self, statement, parameters)

    kind.execute = execute
    try:
        yield statements
    finally:
        kind.execute = original


def _session(backend: Any) -> Any:
    return backend._pool.run(lambda session: session)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(what)
