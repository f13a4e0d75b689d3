"""The address of a database as SQLAlchemy writes it, split into what the drivers take.

`postgresql[+psycopg]://user:password@host:port/database?<libpq parameters>`,
`mysql[+pymysql]://...?ssl_ca=...` (also `mariadb`), `sqlite:////absolute/path`. User and password are
percent-encoded. Two options of the query are this backend's own and never reach a driver: `OWN_OPTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from celery.exceptions import ImproperlyConfigured

DRIVERS: Final = {"postgresql": {"", "psycopg"}, "mysql": {"", "pymysql"}, "sqlite": {"", "pysqlite"}}
OWN_OPTIONS: Final = ("legacy_pickle", "listen")
_TRUTH: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Address:
    """Where the database is, and how to enter it."""

    dialect: str
    host: str = ""
    port: int | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""
    query: tuple[tuple[str, str], ...] = ()
    legacy_pickle: bool = False
    listen: bool = True


def parse(url: str) -> Address:
    """Read a URL.

    Raises `ImproperlyConfigured` for an unknown dialect or driver, a relative SQLite path or an option whose
    value is no truth value; the message never repeats the password.
    """
    parts = urlsplit(url)
    dialect, _, driver = parts.scheme.partition("+")
    dialect = {"mariadb": "mysql"}.get(dialect, dialect)
    if driver not in DRIVERS.get(dialect, ()):
        raise ImproperlyConfigured(
            f"result_backend: expected postgresql+psycopg://, mysql+pymysql:// or sqlite:////absolute/path,"
            f" found {parts.scheme}://"
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    own = {name: truth(name, query.pop(name)) for name in OWN_OPTIONS if name in query}
    database = unquote(parts.path[1:])
    if dialect == "sqlite" and not database.startswith("/"):
        raise ImproperlyConfigured(
            f"result_backend: expected sqlite:////absolute/path, found sqlite://{parts.path}: a relative path"
            " or memory is another database in every process"
        )
    # Not parts.hostname: several hosts, as libpq takes them, are no host name.
    place = parts.netloc.rpartition("@")[2]
    several = "," in place
    return Address(
        dialect=dialect,
        host=place if several else (parts.hostname or ""),
        port=None if several else parts.port,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=database,
        query=tuple(sorted(query.items())),
        legacy_pickle=own.get("legacy_pickle", False),
        listen=own.get("listen", True),
    )


def truth(name: str, text: str) -> bool:
    """Read true or false; raise `ImproperlyConfigured` for anything else."""
    if text.lower() not in _TRUTH:
        raise ImproperlyConfigured(
            f"result_backend: expected {name}=true or {name}=false, found {name}={text}"
        )
    return _TRUTH[text.lower()]
