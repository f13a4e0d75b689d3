"""Celery's tables in a SQLite file."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from celery_results.backends.database.dialect import qualified
from celery_results.stores.record import PAYLOADS, microseconds, moment
from celery_results.stores.sequential import COLUMNS, DuplicateError, RefusedRowsError, require_columns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from celery_results.backends.database.errors import Fault
    from celery_results.backends.database.storage import Storage
    from celery_results.stores.record import Kind, Row

_BYTES: Final = frozenset(PAYLOADS)


class SqliteTables:
    """Both tables of one file."""

    def __init__(self, storage: Storage) -> None:
        """Open nothing yet."""
        names = storage.tables
        self._driver = storage.driver
        self._names: dict[Kind, str] = {
            "results": qualified(names.task_schema, names.task).replace("%%", "%"),
            "groups": qualified(names.group_schema, names.group).replace("%%", "%"),
        }
        self._connection: sqlite3.Connection | None = None
        self._columns: dict[Kind, frozenset[str]] = {}

    def connect(self) -> None:
        """Open the file and look at the tables."""
        session: Any = self._driver.connect()
        self._connection = session.connection
        for kind, table in self._names.items():
            found = session.connection.execute(f"SELECT * FROM {table} LIMIT 0").description
            self._columns[kind] = frozenset(column[0] for column in found)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def fault(self, error: BaseException) -> Fault:
        """Judge as the backend does."""
        return self._driver.fault(error)

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """Ask the primary key."""
        first, last = self._execute(f"SELECT min(id), max(id) FROM {self._names[kind]}").fetchone()
        return int(first or 0), int(last or 0)

    def read(self, kind: Kind, after: int, rows: int) -> Iterator[tuple[int, Row]]:
        """Step through one SELECT; text that should be bytes is encoded."""
        columns = COLUMNS[kind]
        names = [name if name in self._columns[kind] else f"NULL AS {name}" for name in columns]
        date = columns.index("date_done")
        found = self._execute(
            f"SELECT id, {', '.join(names)} FROM {self._names[kind]} WHERE id > ? ORDER BY id LIMIT ?",
            after,
            rows,
        )
        for number, *values in found:
            when = self._driver.moment(values[date])
            values[date] = None
            row = [value.encode() if isinstance(value, str) else value for value in values]
            row[date] = None if when is None else microseconds(when)
            yield number, tuple(row)

    def present(self, kind: Kind, ids: Sequence[bytes]) -> Collection[bytes]:
        """Look them up by the unique index."""
        key = COLUMNS[kind][0]
        wanted = json.dumps([identifier.decode(errors="replace") for identifier in ids])
        statement = f"SELECT {key} FROM {self._names[kind]} WHERE {key} IN (SELECT value FROM json_each(?))"
        return {str(row[0]).encode() for row in self._execute(statement, wanted)}

    def insert(self, kind: Kind, rows: Sequence[Row]) -> None:
        """Store them in one transaction, which takes the file's one write lock."""
        assert self._connection is not None
        columns = COLUMNS[kind]
        require_columns(kind, self._names[kind], self._columns[kind])
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {self._names[kind]} ({', '.join(columns)}) VALUES ({marks})"
        self._execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(statement, (_parameters(columns, row) for row in rows))
            self._execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            if isinstance(error, sqlite3.IntegrityError):
                raise DuplicateError from error
            if isinstance(error, sqlite3.DataError | OverflowError | UnicodeDecodeError):
                raise RefusedRowsError.of(error) from error
            raise

    def _execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        assert self._connection is not None
        return self._connection.execute(statement, parameters)


def _parameters(columns: Sequence[str], row: Row) -> list[object]:
    values: list[object] = []
    for name, value in zip(columns, row, strict=True):
        if name == "date_done" and value is not None:
            values.append(moment(value).isoformat(sep=" ", timespec="microseconds"))
        elif isinstance(value, bytes) and name not in _BYTES:
            values.append(value.decode())
        else:
            values.append(value)
    return values
