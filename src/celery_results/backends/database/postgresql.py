"""PostgreSQL by psycopg 3: prepared statements in autocommit, naive UTC times."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final

import psycopg

from celery_results.backends.database import fork
from celery_results.backends.database.dialect import (
    EXTENDED_COLUMNS,
    GROUP_SEQUENCE,
    LOCK_SPACE,
    LOCKS,
    READ_COLUMNS,
    READY_STATES,
    TASK_SEQUENCE,
    Statements,
    Tables,
    columns,
    qualified,
)
from celery_results.backends.database.errors import Fault

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping, Sequence

    from celery_results.backends.database.url import Address

# libpq's defaults are to wait for ever, and to notice a dead host after two hours.
CONNECTION_DEFAULTS: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "application_name": "celery-results",
}
_BUSY: Final = {"40001", "40P01", "55P03", "57014"}
# The last two: a prepared statement that the server has forgotten, or that a migration has made void.
_LOST: Final = {"57P01", "57P02", "57P03", "57P05", "26000", "0A000"}
_MISSING: Final = {"42P01", "42703", "3F000"}
_READ_ONLY: Final = "25006"


class PostgresSession:
    """A connection with one cursor for all its statements."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Take a connection in autocommit."""
        self.connection = connection
        self.changed = 0
        self._cursor = connection.cursor(binary=True)
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement, prepared on its first use."""
        cursor = self._cursor
        cursor.execute(statement, parameters or None, prepare=True)
        self.changed = cursor.rowcount
        return cursor.fetchall() if cursor.description else []

    def stale(self) -> bool:
        """Look for a farewell in the socket: an idle server says nothing else."""
        return self.connection.closed or bool(self._poll.poll(0))

    def close(self) -> None:
        """Say goodbye to the server."""
        self.connection.close()

    def abandon(self) -> None:
        """Leave the parent's socket: closing would end its session."""
        fork.blind(self.connection.fileno())


class PostgresDriver:
    """One PostgreSQL database."""

    name = "postgresql"

    def __init__(self, address: Address, arguments: Mapping[str, Any]) -> None:
        """Take the address; `arguments` are further libpq parameters and win over it."""
        self.address = address
        given = {
            "host": address.host,
            "port": address.port,
            "user": address.user,
            "password": address.password,
            "dbname": address.database,
        }
        self._arguments: dict[str, Any] = {
            **CONNECTION_DEFAULTS,
            **{name: value for name, value in given.items() if value},
            **dict(address.query),
            **arguments,
        }
        options = self._arguments.get("options", "")
        self._arguments["options"] = f"{options} -c timezone=UTC".strip()

    def connect(self) -> PostgresSession:
        """Open a connection in autocommit."""
        with fork.held_off():
            connection = psycopg.connect(autocommit=True, **self._arguments)
        return PostgresSession(connection)

    def fault(self, error: BaseException) -> Fault:  # a table in words
        """Judge by SQLSTATE; an error without one comes from the connection."""
        if not isinstance(error, psycopg.Error):
            return Fault.FOREIGN
        state = error.sqlstate
        if state is None:
            lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
            return Fault.LOST if lost else Fault.REFUSED
        if state in _LOST or state.startswith("08"):
            return Fault.LOST
        if state in _BUSY or state.startswith("53"):
            return Fault.BUSY
        if state == _READ_ONLY:
            return Fault.READ_ONLY
        return Fault.MISSING if state in _MISSING else Fault.REFUSED

    def ids(self, task_ids: Sequence[str]) -> object:
        """Give an array."""
        return list(task_ids)

    def moment(self, value: dt.datetime | None) -> dt.datetime | None:
        """Leave it: the driver knows naive times."""
        return value

    def statements(self, tables: Tables) -> Statements:
        """Give the SQL of these tables."""
        task = qualified(tables.task_schema, tables.task)
        group = qualified(tables.group_schema, tables.group)
        task_sequence = qualified(tables.task_schema, TASK_SEQUENCE)
        group_sequence = qualified(tables.group_schema, GROUP_SEQUENCE)
        ready = ", ".join(f"'{state}'" for state in READY_STATES)
        return Statements(
            store=_store(task, task_sequence, extended=False),
            store_extended=_store(task, task_sequence, extended=True),
            **_selects(task),
            count_ready=f"SELECT count(*) FROM {task} WHERE task_id = ANY(%s) AND status IN ({ready})",
            exists=f"SELECT 1 FROM {task} WHERE task_id = %s",
            forget=f"DELETE FROM {task} WHERE task_id = %s",
            save_group=(
                f"INSERT INTO {group} (id, taskset_id, result, date_done)"
                f" VALUES (nextval('{group_sequence}'), %s, %s, %s) ON CONFLICT (taskset_id)"
                " DO UPDATE SET result = EXCLUDED.result, date_done = EXCLUDED.date_done"
            ),
            select_group=f"SELECT taskset_id, result, date_done FROM {group} WHERE taskset_id = %s",
            delete_group=f"DELETE FROM {group} WHERE taskset_id = %s",
        )


def open_driver(address: Address, arguments: Mapping[str, Any]) -> PostgresDriver:
    """Give the driver of one database."""
    return PostgresDriver(address, arguments)


def _store(table: str, sequence: str, *, extended: bool) -> str:
    """Build the upsert: a stored SUCCESS is final, and stamps stay where none are given.

    The lock tells whether somebody waits: who waits holds it shared, so that it cannot be taken. It is held
    until the commit, so that whoever begins to wait meanwhile reads the row that this statement writes.
    """
    names = columns(extended=extended)
    values = ", ".join(["%s"] * (len(names) + 1))
    kept = {"stamps": "COALESCE(EXCLUDED.stamps, t.stamps)"}
    changes = ", ".join(f"{name} = {kept.get(name, f'EXCLUDED.{name}')}" for name in names)
    return (
        f"INSERT INTO {table} AS t (id, task_id, {', '.join(names)})"
        f" VALUES (nextval('{sequence}'), {values}) ON CONFLICT (task_id) DO UPDATE SET {changes}"
        " WHERE t.status IS DISTINCT FROM 'SUCCESS'"
        f" RETURNING NOT pg_try_advisory_xact_lock({LOCK_SPACE}, mod(pg_backend_pid(), {LOCKS}))"
    )


def _selects(table: str) -> dict[str, str]:
    core = ", ".join(READ_COLUMNS)
    full = f"{core}, {', '.join(EXTENDED_COLUMNS)}"
    return {
        f"select{suffix}{extended}": f"SELECT {names} FROM {table} WHERE task_id = {match}"
        for suffix, match in (("", "%s"), ("_many", "ANY(%s)"))
        for extended, names in (("", core), ("_extended", full))
    }
