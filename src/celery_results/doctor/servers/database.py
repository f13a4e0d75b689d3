"""SQL databases: what can be judged from the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from celery_results.doctor.findings import SERVER_NOT_CHECKED, Finding, error, info, warning

if TYPE_CHECKING:
    from celery_results.doctor.subject import Subject

NO_DRIVER = warning(
    "CRB301",
    "The database URL names no driver",
    "Name it, for example db+postgresql+psycopg:// or db+mysql+pymysql://: which one is meant by "
    "postgresql:// has "
    "changed between SQLAlchemy 2.0 (psycopg2) and 2.1 (psycopg 3).",
)
CLEANUP_DELETES_ALL = error(
    "CRB302",
    "The clean-up deletes every result",
    "Set result_expires to the seconds that results are needed; with 0 the clean-up takes them all.",
)
CLEANUP_FAILS = error(
    "CRB303",
    "Results never expire, and the clean-up fails",
    "Set result_expires to the seconds that results are needed; with None celery.backend_cleanup raises "
    "TypeError.",
)
POOL_IGNORED = info(
    "CRB304",
    "Pool options count in the worker's children only",
    "Remove them: a child runs one task at a time and needs one connection; every other process opens a "
    "connection "
    "for each operation, whatever they say.",
)
NO_PRE_PING = warning(
    "CRB305",
    "Stale connections are not noticed",
    "Add 'pool_pre_ping': True to database_engine_options: setting the dictionary replaces Celery's "
    "defaults.",
)
ISOLATION = warning(
    "CRB306",
    "The clean-up blocks new results",
    "Set database_engine_options = {'isolation_level': 'READ COMMITTED', ...}: under MySQL's REPEATABLE "
    "READ the "
    "clean-up's gap locks stop every insert.",
)
COMPRESSION_IGNORED = warning(
    "CRB307",
    "Results are not compressed",
    "Remove result_compression: this backend ignores it.",
)
LOCAL_TIME = warning(
    "CRB308",
    "Completion times are stored in local time",
    "Set timezone = 'UTC': the clean-up compares with UTC and deletes too early, or too late.",
)
NO_TLS = warning(
    "CRB309",
    "The database connection does not verify the server",
    "Add TLS to database_engine_options['connect_args']: PostgreSQL {'sslmode': 'verify-full', "
    "'sslrootcert': ...}, "
    "PyMySQL {'ssl': {'ca': ..., 'check_hostname': True}}.",
)

STOCK_ALIASES: Final = frozenset({"db", "database"})
ALIASES: Final = frozenset({*STOCK_ALIASES, "celery_results.backends.database:DatabaseBackend"})
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_UTC: Final = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT"})


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the database backend."""
    settings = subject.settings
    url = subject.url or str(settings.get("database_url") or "")
    dialect, _, driver = url.partition("://")[0].partition("+")
    if dialect in {"postgresql", "mysql", "mariadb"} and not driver:
        yield NO_DRIVER.finding(f"the URL starts with {dialect}://")
    yield from _expiry(settings)
    options = settings.get("database_engine_options")
    options = options if isinstance(options, Mapping) else {}
    if subject.alias in STOCK_ALIASES:
        yield from _engine(options, dialect, given=settings.get("database_engine_options") is not None)
    host = url.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0]
    if dialect != "sqlite" and host and not host.startswith(_LOCAL) and not _verifies(options, url):
        yield NO_TLS.finding(f"neither connect_args nor the URL ask for TLS that verifies {host}")
    if settings.get("result_compression"):
        yield COMPRESSION_IGNORED.finding(f"result_compression = {settings['result_compression']!r}")
    zone = str(settings.get("timezone") or "UTC")
    if dialect in {"mysql", "mariadb", "sqlite"} and zone not in _UTC:
        yield LOCAL_TIME.finding(f"timezone = {zone!r}")


def check_server(subject: Subject) -> Iterator[Finding]:
    """Say that the server was not looked at."""
    yield SERVER_NOT_CHECKED.finding(f"doctor has no live checks for {subject.alias}+ URLs yet")


def _expiry(settings: Mapping[str, Any]) -> Iterator[Finding]:
    value = settings.get("result_expires", timedelta(days=1))
    if value is None:
        yield CLEANUP_FAILS.finding("result_expires = None")
    elif not value:
        yield CLEANUP_DELETES_ALL.finding(f"result_expires = {value!r}")


def _engine(options: Mapping[str, Any], dialect: str, *, given: bool) -> Iterator[Finding]:
    """Judge what Celery's own class makes of SQLAlchemy; ours has a pool in every process."""
    ignored = sorted({"pool_size", "max_overflow", "pool_timeout"} & set(options))
    if ignored:
        yield POOL_IGNORED.finding(f"database_engine_options has {', '.join(ignored)}")
    if dialect == "sqlite":
        return
    if given and not options.get("pool_pre_ping"):
        yield NO_PRE_PING.finding("database_engine_options has no pool_pre_ping")
    level = str(options.get("isolation_level") or "").upper().replace("_", " ")
    if dialect in {"mysql", "mariadb"} and level != "READ COMMITTED":
        yield ISOLATION.finding(f"isolation_level is {level or 'not set'}")


def _verifies(options: Mapping[str, Any], url: str) -> bool:
    arguments = options.get("connect_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    query = url.partition("?")[2]
    tls = arguments.get("ssl")
    return (
        arguments.get("sslmode") in {"verify-full", "verify-ca"}
        or bool(arguments.get("ssl_ca"))
        or (isinstance(tls, Mapping) and bool(tls.get("ca")))
        or any(part in query for part in ("sslmode=verify-", "ssl_ca="))
    )
