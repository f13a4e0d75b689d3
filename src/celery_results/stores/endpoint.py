"""A source or target as somebody names it: an env file, a URL without a password, or env:VARIABLE."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import ImproperlyConfigured

from celery_results.backends.database.dialect import driver_for
from celery_results.backends.database.storage import Storage
from celery_results.settings import load_settings
from celery_results.stores.errors import EndpointError
from celery_results.stores.record import Shape
from celery_results.stores.sequential import SqlSource, SqlTarget, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_results.options import Common
    from celery_results.stores.record import Source, Target

# What may stand before the address: Celery's own names, or a class such as ours.
_BACKEND: Final = re.compile(
    r"(?:(?P<class>db|database|[\w.]+:\w+)\+)?"
    r"(?P<scheme>rediss?|redis\+socket|sentinel|postgresql|mysql|mariadb|sqlite)(?:\+\w+)?(?P<rest>://.*)",
    re.DOTALL,
)
_DATABASES: Final = frozenset({"postgresql", "mysql", "mariadb", "sqlite"})
_VARIABLE: Final = "env:"


@dataclass(frozen=True)
class Endpoint:
    """One store, not connected yet; `place` names it without login or password."""

    place: str
    shape: Shape
    settings: Mapping[str, Any] = field(repr=False)
    storage: Storage | None = None
    _redis: Any = None  # Celery's backend
    load_data: bool = False  # MySQL and MariaDB: allow the server to ask for a file

    def source(self) -> Source:
        """Give it for reading."""
        if self.storage is not None:
            return SqlSource(_tables(self.storage))
        from celery_results.stores.redis import RedisSource  # noqa: PLC0415 - a host may lack redis-py

        return RedisSource(self._redis.client, self._prefixes())

    def target(self) -> Target:
        """Give it for filling."""
        if self.storage is not None and self.load_data and self.storage.driver.name == "mysql":
            from celery_results.stores.mysql import MySQLTables  # noqa: PLC0415

            options = (self.settings.get("database_engine_options") or {}).get("connect_args") or {}
            driver = driver_for(self.storage.driver.address, {**options, "local_infile": True})
            return SqlTarget(MySQLTables(replace(self.storage, driver=driver), load=True))
        if self.storage is not None:
            return SqlTarget(_tables(self.storage))
        from celery_results.stores.redis import RedisTarget  # noqa: PLC0415

        return RedisTarget(self._redis.client, self._prefixes())

    def precise(self) -> Endpoint:
        """Ask a database whether its date_done has microseconds; connects, raises the driver's errors."""
        if self.storage is None or self.storage.driver.name != "mysql":
            return self
        tables: Any = _tables(self.storage)
        tables.connect()
        try:
            return replace(self, shape=replace(self.shape, keeps_microseconds=tables.precise["results"]))
        finally:
            tables.close()

    def _prefixes(self) -> dict[Any, bytes]:
        return {"results": _bytes(self._redis.task_keyprefix), "groups": _bytes(self._redis.group_keyprefix)}


def endpoint(name: str, common: Common) -> Endpoint:
    """Understand what --from or --to says; raises EndpointError and what reading an env file raises."""
    if name.startswith(_VARIABLE):
        variable = name.removeprefix(_VARIABLE)
        url = os.environ.get(variable, "")
        if not url:
            raise EndpointError(
                expected=f"a URL in the environment variable {variable}",
                found="nothing",
                do="export it, or name an env file of the celery role",
            )
        common.state.environments.append({"COPY_URL": _address(url)})
        return of_settings({"result_backend": url}, "a URL")
    if "://" in name:
        if _has_password(name):
            raise EndpointError(
                expected="no password on the command line, where every user of this host can read it",
                found="a URL with one",
                do="name an env file of the celery role, or put the URL into a variable and say env:VARIABLE",
            )
        return of_settings({"result_backend": name}, "the URL")
    return of_settings(load_settings(common.config_directory, common.read(Path(name))), name)


def of_settings(settings: Mapping[str, Any], name: str) -> Endpoint:
    """Understand Celery's settings; connects to nothing. Raises EndpointError."""
    backend = str(settings.get("result_backend") or "")
    match = _BACKEND.fullmatch(backend)
    if match is None:
        kind = re.split("[:+]", backend, maxsplit=1)[0] or "none"
        drained = "; what rpc has sent is in its clients, not in a store: let them drain" * (kind == "rpc")
        raise EndpointError(
            expected=f"{name} to keep results in Redis, PostgreSQL, MySQL, MariaDB or SQLite",
            found=f"the result backend {kind}",
            do=f"name another{drained}",
        )
    try:
        if match["scheme"] in _DATABASES:
            return _database(match["scheme"] + match["rest"], settings)
        return _redis(backend, settings)
    except ImproperlyConfigured as error:
        raise EndpointError(
            expected="an address that can be used",
            found=str(error),
            do="correct it, or deploy this host again",
        ) from None
    except ImportError as error:
        raise EndpointError(
            expected=f"the Python module {error.name}", found="no such module", do="install it here"
        ) from None


def _database(url: str, settings: Mapping[str, Any]) -> Endpoint:
    options = settings.get("database_engine_options") or {}
    storage = Storage.at(
        url,
        settings.get("database_table_names"),
        settings.get("database_table_schemas"),
        options.get("connect_args"),
    )
    address, tables = storage.driver.address, storage.tables
    port = f":{address.port}" if address.port else ""
    place = f"{address.dialect}://{address.host}{port}/{address.database.lstrip('/')} {tables.task}"
    return Endpoint(place, _shape("rows", settings), settings, storage)


def _redis(backend: str, settings: Mapping[str, Any]) -> Endpoint:
    app = Celery("copy", set_as_current=False)
    app.config_from_object({**settings, "result_backend": backend})
    redis: Any = app.backend
    if not isinstance(redis, RedisBackend):
        raise ImproperlyConfigured(f"{type(redis).__name__} is no backend for Redis")
    values = redis.connparams
    hosts = values.get("hosts") or [values]
    where = ",".join(
        str(host.get("path") or f"{host.get('host') or 'localhost'}:{host.get('port') or 6379}")
        for host in hosts
    )
    place = f"redis://{where}/{values.get('db') or 0} {_bytes(redis.task_keyprefix).decode()}*"
    return Endpoint(
        place, _shape("documents", {**settings, "result_expires": redis.expires}), settings, None, redis
    )


def _shape(form: Any, settings: Mapping[str, Any]) -> Shape:  # noqa: ANN401 - a literal
    expires = settings.get("result_expires", 86_400.0)
    seconds = expires.total_seconds() if hasattr(expires, "total_seconds") else expires
    return Shape(form, str(settings.get("result_serializer") or "json"), float(seconds) if seconds else None)


def _tables(storage: Storage) -> Tables:
    """Import the one driver that is needed."""
    if storage.driver.name == "postgresql":
        from celery_results.stores.postgresql import PostgresTables  # noqa: PLC0415

        return PostgresTables(storage)
    if storage.driver.name == "mysql":
        from celery_results.stores.mysql import MySQLTables  # noqa: PLC0415

        return MySQLTables(storage)
    from celery_results.stores.sqlite import SqliteTables  # noqa: PLC0415

    return SqliteTables(storage)


def _address(backend: str) -> str:
    """Leave the class in front away, so that what is left is a URL."""
    match = _BACKEND.fullmatch(backend)
    return match["scheme"] + match["rest"] if match else backend


def _has_password(backend: str) -> bool:
    for part in _address(backend).split(";"):
        try:
            parts = urlsplit(part)
            if parts.password or "password" in parts.query:
                return True
        except ValueError:
            return True
    return False


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
