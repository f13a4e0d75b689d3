"""How the settings reach the server: SQLAlchemy's URL and engine options, as libpq takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg

from celery_results.doctor.certificates import TIMEOUT_SECONDS, Authority
from celery_results.doctor.subject import split_backend

if TYPE_CHECKING:
    from celery_results.doctor.subject import Settings

DEFAULT_PORT: Final = 5432
# Options of SQLAlchemy's dialects and of the bundle's class, unknown to libpq.
_NOT_LIBPQ: Final = frozenset({"legacy_pickle", "listen", "client_encoding", "prepare_threshold"})


class UnreadableError(Exception):
    """The settings describe no connection."""


@dataclass(frozen=True)
class Parameters:
    """One login to one database."""

    values: dict[str, Any] = field(repr=False)

    @property
    def host(self) -> str:
        """Give the server's name or address; a path is a unix socket."""
        return str(self.values.get("host") or "localhost")

    @property
    def port(self) -> int:
        """Give the port."""
        return int(self.values.get("port") or DEFAULT_PORT)

    @property
    def user(self) -> str:
        """Name the login."""
        return str(self.values.get("user") or "")

    @property
    def is_tls(self) -> bool:
        """Say whether the settings insist on TLS."""
        return self.values.get("sslmode") in {"require", "verify-ca", "verify-full"}

    @property
    def verifies(self) -> bool:
        """Say whether the settings verify the server's certificate."""
        return self.values.get("sslmode") in {"verify-ca", "verify-full"}

    @property
    def is_socket(self) -> bool:
        """Say whether it is a unix socket."""
        return self.host.startswith(("/", "@"))

    @property
    def authority(self) -> Authority:
        """Give the files of TLS."""
        ca_file = self.values.get("sslrootcert")
        certificate, key = self.values.get("sslcert"), self.values.get("sslkey")
        return Authority(
            None if ca_file in {None, "", "system"} else str(ca_file),
            str(certificate) if certificate else None,
            str(key) if key else None,
        )

    def connect(self, **changes: object) -> psycopg.Connection[Any]:
        """Connect, in autocommit; raises psycopg.OperationalError."""
        own = {
            "connect_timeout": int(TIMEOUT_SECONDS),
            "application_name": "celery-results doctor",
            "passfile": os.devnull,
        }
        connection: psycopg.Connection[Any] = psycopg.connect(
            **{**self.values, **own, **changes}, autocommit=True
        )
        return connection


def read_parameters(settings: Settings, backend: str) -> Parameters:
    """Read them from result_backend and database_engine_options."""
    url = split_backend(backend)[1] or str(settings.get("database_url") or "")
    try:
        parts = urlsplit(url)
        values: dict[str, Any] = {
            "host": parts.hostname,
            "port": parts.port,
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "dbname": unquote(parts.path[1:]),
        }
    except ValueError:
        raise UnreadableError from None
    options = settings.get("database_engine_options")
    arguments = options.get("connect_args") if isinstance(options, Mapping) else None
    query = {name: value for name, value in parse_qsl(parts.query) if name not in _NOT_LIBPQ}
    merged = values | query | (dict(arguments) if isinstance(arguments, Mapping) else {})
    if not merged.get("dbname"):
        raise UnreadableError
    return Parameters({name: value for name, value in merged.items() if value not in {None, ""}})
