"""From the settings to a connection of doctor's own, which verifies as much as theirs do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pymysql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from celery_results.doctor.certificates import TIMEOUT_SECONDS
from celery_results.doctor.subject import split_backend

DEFAULT_PORT: Final = 3306
_SECONDS: Final = round(TIMEOUT_SECONDS)
_FILES: Final = ("ca", "cert", "key")
_YES: Final = frozenset({"1", "true", "yes", "on", "required"})


class RefusedError(Exception):
    """The settings describe no connection."""


@dataclass(frozen=True)
class Parameters:
    """One login at one server."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    database: str
    socket_path: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    verifies: bool = False
    verifies_name: bool = False

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """Log in; yields a cursor of dictionaries; raises pymysql's MySQLError and OSError."""
        session = pymysql.connect(
            host=self.host,
            port=self.port,
            unix_socket=self.socket_path or None,
            user=self.username,
            password=self.password,
            database=self.database or None,
            connect_timeout=_SECONDS,
            read_timeout=_SECONDS,
            write_timeout=_SECONDS,
            autocommit=True,
            cursorclass=pymysql.cursors.DictCursor,
            **self._tls(),
        )
        try:
            with session.cursor() as cursor:
                yield cursor
        finally:
            session.close()

    def _tls(self) -> dict[str, Any]:
        if self.socket_path or not (self.files or self.verifies):
            return {}
        return {
            **{f"ssl_{name}": path for name, path in self.files.items()},
            "ssl_verify_cert": self.verifies,
            "ssl_verify_identity": self.verifies_name,
        }


def read_parameters(settings: Mapping[str, Any], result_backend: str) -> Parameters:
    """Read the URL and database_engine_options as the backend does; raises RefusedError."""
    url = split_backend(result_backend)[1] or str(settings.get("database_url") or "")
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise RefusedError("the URL of the database cannot be parsed") from None
    options = settings.get("database_engine_options")
    arguments = options.get("connect_args") if isinstance(options, Mapping) else None
    arguments = arguments if isinstance(arguments, Mapping) else {}
    query = {name: value if isinstance(value, str) else value[-1] for name, value in parsed.query.items()}
    tls = _tls({**query, **arguments})
    return Parameters(
        host=parsed.host or "localhost",
        port=parsed.port or DEFAULT_PORT,
        username=parsed.username or "",
        password=str(parsed.password or ""),
        database=parsed.database or "",
        socket_path=str(query.get("unix_socket") or arguments.get("unix_socket") or ""),
        files={name: str(tls[name]) for name in _FILES if tls.get(name)},
        verifies=_is_on(tls.get("verify_mode"), default=bool(tls.get("ca"))),
        verifies_name=_is_on(tls.get("check_hostname"), default=bool(tls.get("ca"))),
    )


def _tls(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Bring PyMySQL's old form, one dictionary, and its new one, ssl_*, to the old one."""
    given = arguments.get("ssl")
    tls = dict(given) if isinstance(given, Mapping) else {}
    tls |= {name: arguments[f"ssl_{name}"] for name in _FILES if arguments.get(f"ssl_{name}")}
    for name, new in (("verify_mode", "ssl_verify_cert"), ("check_hostname", "ssl_verify_identity")):
        if new in arguments:
            tls[name] = arguments[new]
    return tls


def _is_on(value: object, *, default: bool) -> bool:
    if value is None:
        return default
    return value.lower() in _YES if isinstance(value, str) else bool(value)
