"""Bring one database to the newest revision, or say what that would take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from .errors import NewerError, SchemaError, UsageError
from .layout import TABLES, VERSION_TABLE
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine

    from .layout import Dialect

SCHEMA = "public"
_MODULES = {"psycopg2": "python3-psycopg2", "psycopg": "python3-psycopg", "pymysql": "python3-pymysql"}


@dataclass(frozen=True)
class Options:
    """What the caller decides: seconds are for one lock, and for all attempts together."""

    url: str
    owner: str | None = None
    lock_seconds: float = 5.0
    wait_seconds: float = 600.0
    rewrite_bytes: int = 128 * 1024 * 1024


def head() -> str:
    """Give the newest revision of this release."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def run(options: Options, *, change: bool) -> dict[str, Any]:
    """Upgrade, or only look; raises SchemaError.

    Gives ``{"changed": bool, "from": revision or None, "to": revision, "adopted": bool, "steps": [text]}``;
    where only looked at, ``changed`` and ``steps`` say what an upgrade would do.
    """
    engine = _engine(options)
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if file and not change and not Path(file).exists():
        # Opening it would make it.
        return _result(None, [f"create {table.name}" for table in TABLES], adopted=False)
    try:
        with _connection(engine) as connection:
            dialect = _dialect(connection, options)
            dialect.prepare()
            if not change:
                return _look(connection, dialect)
            with dialect.locked(options.wait_seconds):
                return _upgrade(connection, dialect)
    except DBAPIError as error:
        # Never str(error): it may hold the address with a password.
        raise SchemaError(
            expected=f"{engine.url.get_backend_name()} to answer and to allow what an owner does",
            found=" ".join(str(error.orig).split()),
            do="check the address, the login and the server's log; running again goes on from where it is",
        ) from error
    finally:
        engine.dispose()


def _look(connection: Connection, dialect: Dialect) -> dict[str, Any]:
    before, adopted = _revision(connection, dialect)
    steps = [step.text for step in dialect.plan()]
    if before != head() and not steps:
        steps = [f"record revision {head()}"]
    return _result(before, steps, adopted=adopted)


def _upgrade(connection: Connection, dialect: Dialect) -> dict[str, Any]:
    before, adopted = _revision(connection, dialect)
    done: list[str] = []

    def converge() -> None:
        for step in dialect.plan():
            dialect.execute(step)
            done.append(step.text)
        left = dialect.plan()
        if left:
            raise SchemaError(
                expected="nothing left to do after the upgrade",
                found="; ".join(step.text for step in left),
                do="report it: the server did not keep what it was told",
            )

    if before == head():
        converge()  # what somebody changed since, and an index that a crash left invalid
    else:
        config = _config()
        config.attributes.update(
            connection=connection,
            converge=converge,
            version_table=VERSION_TABLE,
            version_schema=_version_schema(connection),
        )
        command.upgrade(config, "head")
        done = done or [f"record revision {head()}"]
    return _result(before, done, adopted=adopted)


def _result(before: str | None, steps: list[str], *, adopted: bool) -> dict[str, Any]:
    return {"changed": bool(steps), "from": before, "to": head(), "adopted": adopted, "steps": steps}


def _revision(connection: Connection, dialect: Dialect) -> tuple[str | None, bool]:
    """Give the revision, and whether these are tables that we did not make."""
    existing = dialect.existing()
    revision = None
    if VERSION_TABLE in existing:
        place = _version_schema(connection)
        name = f"{place}.{VERSION_TABLE}" if place else VERSION_TABLE
        revision = connection.execute(sqlalchemy.text(f"SELECT version_num FROM {name}")).scalar()  # noqa: S608 - constants
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise NewerError(
            expected=f"a revision up to {head()}",
            found=f"revision {revision}, of a later release",
            do="use that release or a later one; nothing was changed",
        )
    return revision, revision is None and bool(existing & {table.name for table in TABLES})


def _version_schema(connection: Connection) -> str | None:
    return SCHEMA if connection.dialect.name == "postgresql" else None


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _engine(options: Options) -> Engine:
    try:
        engine = sqlalchemy.create_engine(options.url, poolclass=NullPool, future=True)
    except (ArgumentError, NoSuchModuleError):
        raise UsageError(
            expected="a URL such as postgresql+psycopg2:///celery_results?host=/var/run/postgresql",
            found="something else, not shown here: it may hold a password",
            do="correct --url or --url-file",
        ) from None
    except ImportError as error:
        raise UsageError(
            expected=f"the Python module {error.name}",
            found="no such module",
            do=f"apt-get install --yes {_MODULES.get(error.name or '', 'the driver that the URL names')}",
        ) from None
    name = engine.dialect.name
    if name not in {"postgresql", "mysql", "mariadb", "sqlite"}:
        raise UsageError(
            expected="a postgresql, mysql or sqlite URL", found=f"{name}://", do="correct --url or --url-file"
        )
    if options.owner and name != "postgresql":
        raise UsageError(
            expected="--owner with PostgreSQL only", found=f"a {name} URL", do="leave --owner out"
        )
    return engine


@contextlib.contextmanager
def _connection(engine: Engine) -> Iterator[Connection]:
    # Transactions are begun by the steps themselves: an index CONCURRENTLY cannot be in one.
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def _dialect(connection: Connection, options: Options) -> Dialect:
    if connection.dialect.name == "postgresql":
        return PostgreSQL(
            connection, options.owner, options.lock_seconds, options.wait_seconds, options.rewrite_bytes
        )
    if connection.dialect.name == "sqlite":
        return SQLite(connection, options.wait_seconds)
    return MySQL(connection, options.lock_seconds, options.wait_seconds)
