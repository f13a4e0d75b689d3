"""SQLite by the standard library: the file must exist, in WAL mode as the role makes it."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from celery_results.backends.database import fork
from celery_results.backends.database.dialect import (
    EXTENDED_COLUMNS,
    READ_COLUMNS,
    READY_STATES,
    Statements,
    Tables,
    columns,
    qualified,
)
from celery_results.backends.database.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_results.backends.database.url import Address

BUSY_SECONDS: Final = 30.0
_DURABILITY: Final = {"FULL": "FULL", "NORMAL": "NORMAL"}
_ABANDONED: Final[list[sqlite3.Connection]] = []
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
_READ_ONLY: Final = sqlite3.SQLITE_READONLY
_MISSING: Final = ("no such table", "no such column", "has no column", "unable to open database file")
_PRIMARY_CODE: Final = 0xFF  # the rest of a result code says more precisely the same


class SQLiteSession:
    """A connection in autocommit: a statement is a transaction, and waits for the lock as long as told."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take a connection without Python's implicit transactions."""
        self.connection = connection
        self.changed = 0

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        cursor = self.connection.execute(statement, parameters)
        rows = cursor.fetchall()
        self.changed = cursor.rowcount
        return rows

    def stale(self) -> bool:
        """Say no: there is no server that could hang up."""
        return False

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def abandon(self) -> None:
        """Keep it for ever: SQLite forbids even to close a parent's connection (howtocorrupt.html, 2.6)."""
        _ABANDONED.append(self.connection)


class SQLiteDriver:
    """One file."""

    name = "sqlite"

    def __init__(self, address: Address, arguments: Mapping[str, Any]) -> None:
        """Take the path; `timeout` (seconds to wait for a lock) may come by query or `arguments`.

        So may `synchronous`: FULL loses nothing acknowledged, NORMAL the last moments if the machine fails.
        """
        self.address = address
        options = {**dict(address.query), **arguments}
        self._seconds = float(options.get("timeout", BUSY_SECONDS))
        self._synchronous = _DURABILITY[str(options.get("synchronous", "FULL")).upper()]

    def connect(self) -> SQLiteSession:
        """Open the file; never make one."""
        with fork.held_off():
            connection = sqlite3.connect(
                f"file:{quote(self.address.database)}?mode=rw",
                uri=True,
                timeout=self._seconds,
                isolation_level=None,
                check_same_thread=False,
            )
        # Of the connection, not of the file; the library's default is a matter of how it was built.
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        return SQLiteSession(connection)

    def fault(self, error: BaseException) -> Fault:
        """Judge by result code, and by text where SQLite has one code for all."""
        if not isinstance(error, sqlite3.Error):
            return Fault.FOREIGN
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
        if code in _BUSY:
            return Fault.BUSY
        if code == _READ_ONLY:
            return Fault.READ_ONLY
        return Fault.MISSING if any(text in str(error) for text in _MISSING) else Fault.REFUSED

    def ids(self, task_ids: Sequence[str]) -> object:
        """Give a JSON array: no limit on the number of variables applies."""
        return json.dumps(list(task_ids))

    def moment(self, value: Any) -> Any:  # noqa: ANN401 # see Driver
        """Write as SQLAlchemy does, `2026-01-31 23:59:59.000000`, and read what it wrote."""
        if isinstance(value, dt.datetime):
            return value.isoformat(sep=" ", timespec="microseconds")
        return dt.datetime.fromisoformat(value) if isinstance(value, str) else value

    def statements(self, tables: Tables) -> Statements:
        """Give the SQL of these tables."""
        task = qualified(tables.task_schema, tables.task)
        group = qualified(tables.group_schema, tables.group)
        ready = ", ".join(f"'{state}'" for state in READY_STATES)
        core = ", ".join(READ_COLUMNS)
        full = f"{core}, {', '.join(EXTENDED_COLUMNS)}"
        many = "task_id IN (SELECT value FROM json_each(?))"
        return Statements(
            store=_store(task, extended=False),
            store_extended=_store(task, extended=True),
            select=f"SELECT {core} FROM {task} WHERE task_id = ?",
            select_extended=f"SELECT {full} FROM {task} WHERE task_id = ?",
            select_many=f"SELECT {core} FROM {task} WHERE {many}",
            select_many_extended=f"SELECT {full} FROM {task} WHERE {many}",
            count_ready=f"SELECT count(*) FROM {task} WHERE {many} AND status IN ({ready})",
            exists=f"SELECT 1 FROM {task} WHERE task_id = ?",
            forget=f"DELETE FROM {task} WHERE task_id = ?",
            save_group=(
                f"INSERT INTO {group} (taskset_id, result, date_done) VALUES (?, ?, ?)"
                " ON CONFLICT (taskset_id) DO UPDATE"
                " SET result = excluded.result, date_done = excluded.date_done"
            ),
            select_group=f"SELECT taskset_id, result, date_done FROM {group} WHERE taskset_id = ?",
            delete_group=f"DELETE FROM {group} WHERE taskset_id = ?",
        )


def open_driver(address: Address, arguments: Mapping[str, Any]) -> SQLiteDriver:
    """Give the driver of one file."""
    return SQLiteDriver(address, arguments)


def _store(table: str, *, extended: bool) -> str:
    """Build the upsert: a stored SUCCESS is final, and stamps stay where none are given."""
    names = columns(extended=extended)
    values = ", ".join(["?"] * (len(names) + 1))
    kept = {"stamps": "coalesce(excluded.stamps, stamps)"}
    changes = ", ".join(f"{name} = {kept.get(name, f'excluded.{name}')}" for name in names)
    return (
        f"INSERT INTO {table} (task_id, {', '.join(names)}) VALUES ({values})"
        f" ON CONFLICT (task_id) DO UPDATE SET {changes} WHERE status IS NOT 'SUCCESS'"
    )
