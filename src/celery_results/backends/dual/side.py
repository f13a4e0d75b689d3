"""One side of the two: a backend of its own class with settings of its own, in the same application.

Each side sees the application through `SideApp`, whose `conf` puts the side's settings before the others. So
serializers, key prefixes, TLS, table names and timeouts may differ, while tasks, signatures and
`app.backend` (the dual backend, which a chord's body and errors go through) are the application's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery.app import backends
from celery.app.utils import Settings
from celery.backends.base import Backend, DisabledBackend
from celery.exceptions import ImproperlyConfigured
from kombu.utils.url import maybe_sanitize_url

if TYPE_CHECKING:
    from collections.abc import Mapping

# Never another side's, nor the dual backend's own.
_NOT_SHARED: Final = {"result_backend_transport_options": {}, "result_cache_max": -1}
_BLOCKING: Final = {"psycopg2", "mysqldb"}


class SideApp:
    """The application, but for its settings."""

    def __init__(self, app: Any, settings: Mapping[str, Any]) -> None:  # noqa: ANN401 # Celery has no types
        """Put `settings` before those of `app`, which may still change."""
        self._app = app
        conf = app.conf
        conf.finalize()
        self.conf = Settings(
            {}, [dict(settings), *conf.maps], conf.__dict__.get("_keys"), conf.__dict__.get("prefix")
        )

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 # whatever the application has
        """Give everything else as the application does."""
        return getattr(self._app, name)


def class_of(app: Any, settings: Mapping[str, Any]) -> tuple[type[Backend], str | None]:  # noqa: ANN401
    """Give the class and the URL of a side; raises ImproperlyConfigured for one that stores nothing."""
    kind, url = backends.by_url(settings["result_backend"], app.loader)
    problem = ""
    if not isinstance(kind, type) or not issubclass(kind, Backend):
        problem = "no backend of Celery's"
    elif issubclass(kind, DisabledBackend) or kind.__module__ == "celery.backends.rpc":
        problem = f"{kind.__name__}, which stores nothing: let its clients drain instead"
    elif kind.__module__.startswith("celery_results.backends.dual"):
        problem = "another dual backend"
    if problem:
        raise ImproperlyConfigured(f"dual backend: expected each side to store results, found {problem}")
    return kind, url


def place_of(app: Any, settings: Mapping[str, Any]) -> str:  # noqa: ANN401
    """Name a side without a secret: its URL without password and query, else its class."""
    kind, url = class_of(app, settings)
    if not url:
        return f"{kind.__module__}:{kind.__name__}"
    return ";".join(maybe_sanitize_url(part).partition("?")[0] for part in url.split(";"))


def blocking_driver(app: Any, settings: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    """Name the driver that waits in C, where gevent or eventlet cannot go on with other tasks meanwhile.

    SQLite does so too, but for no longer than it is told. psycopg 3 and the drivers in Python know gevent.
    """
    kind, url = class_of(app, settings)
    dialect, _, driver = str(url or settings.get("database_url") or "").partition("://")[0].partition("+")
    if kind.__module__ != "celery.backends.database":
        return None
    named = driver or {"postgresql": "psycopg2", "mysql": "mysqldb"}.get(dialect, "")
    return named if named in _BLOCKING else None


def build(app: Any, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401 # a backend
    """Build a side; raises what its class raises, for a stock database also if the server is away."""
    kind, url = class_of(app, settings)
    return kind(app=SideApp(app, {**_NOT_SHARED, **settings, "result_cache_max": -1}), url=url)


def build_mirror(app: Any, settings: Mapping[str, Any], seconds: float) -> Any:  # noqa: ANN401
    """Build the side that may fail: it answers within `seconds` or not at all, and is asked once.

    No retries, no connection yet, no DDL: the tables are somebody else's, and Celery's class would try to
    make them ten times.
    """
    once: dict[str, Any] = {
        "redis_socket_timeout": seconds,
        "redis_socket_connect_timeout": seconds,
        "redis_retry_on_timeout": False,
        "database_create_tables_at_setup": False,
    }
    transport = dict(settings.get("result_backend_transport_options") or {})
    policy = {**(transport.get("retry_policy") or {}), "max_retries": 0}
    transport["retry_policy"] = policy
    if str(class_of(app, settings)[1]).startswith("sqlite"):
        # The library waits for a lock by itself, with gevent for all tasks of the process.
        engine = dict(settings.get("database_engine_options") or app.conf.database_engine_options or {})
        connect = dict(engine.get("connect_args") or {})
        connect["timeout"] = min(float(connect.get("timeout", seconds)), seconds)
        once["database_engine_options"] = {**engine, "connect_args": connect}
    mirror = build(app, {**settings, **once, "result_backend_transport_options": transport})
    mirror.always_retry = False
    mirror.max_retries = 0
    if hasattr(mirror, "connparams"):
        _answer_within(mirror.connparams, seconds)
    if hasattr(mirror, "session_manager"):
        mirror.session_manager.prepared = True  # celery/backends/database/session.py, prepare_models
    return mirror


def _answer_within(parameters: dict[str, Any], seconds: float) -> None:
    """Bound a Redis connection, whatever its URL says; redis-py would retry by itself."""
    from redis.backoff import NoBackoff  # noqa: PLC0415 # a host may lack redis-py
    from redis.retry import Retry  # noqa: PLC0415

    parameters.update(socket_timeout=seconds, retry=Retry(NoBackoff(), 0))
    if "path" not in parameters:  # a unix socket knows no connect timeout
        parameters["socket_connect_timeout"] = seconds


def check_pair(app: Any, sides: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: ANN401
    """Refuse what no two sides of one process can be; raises ImproperlyConfigured."""
    old, new = sides["old"], sides["new"]
    classes = [class_of(app, side)[0] for side in (old, new)]
    if old["result_backend"] == new["result_backend"] and _place(old) == _place(new):
        raise ImproperlyConfigured("dual backend: expected two stores, found one and the same twice")
    stock = all(kind.__module__ == "celery.backends.database" for kind in classes)
    names = [
        {
            name: side.get(name) or app.conf.get(name)
            for name in ("database_table_names", "database_table_schemas")
        }
        for side in (old, new)
    ]
    if stock and names[0] != names[1]:
        raise ImproperlyConfigured(
            "dual backend: two sides of Celery's own database class share their tables' names in a process;"
            " use celery_results.backends.database:DatabaseBackend for one of them, or the same names"
        )


def _place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give what sets two stores on one server apart."""
    names = ("result_backend_transport_options", "database_table_names", "database_table_schemas")
    return {name: settings.get(name) or {} for name in names} | {
        name: settings.get(name) for name in ("redis_host", "redis_port", "redis_db", "database_url")
    }
