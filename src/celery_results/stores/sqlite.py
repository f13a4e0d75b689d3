"""Celery's tables in a SQLite file."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from celery_results.stores.record import NO_DATE, PAYLOADS, date_of, moment
from celery_results.stores.sequential import DuplicateError, RefusedRowsError
from celery_results.stores.tables import COLUMNS, DATES, DatabaseTables, weight

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from celery_results.backends.database.storage import Storage
    from celery_results.stores.record import Kind, Row

_BYTES: Final = frozenset(PAYLOADS)


class SqliteTables(DatabaseTables):
    """Both tables of one file."""

    def __init__(self, storage: Storage) -> None:
        """Open nothing yet."""
        super().__init__(storage)
        self._connection: sqlite3.Connection | None = None

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

    def read(self, kind: Kind, after: int, rows: int) -> Iterator[tuple[int, Row, int]]:
        """Step through one SELECT; text that should be bytes is encoded."""
        date = DATES[kind]
        found = self._execute(
            f"SELECT id, {self._selected(kind)} FROM {self._names[kind]} WHERE id > ? ORDER BY id LIMIT ?",
            after,
            rows,
        )
        for number, *values in found:
            try:
                when = self._driver.moment(values[date])
            except ValueError:
                when = NO_DATE
            values[date] = None
            row = [value.encode() if isinstance(value, str) else value for value in values]
            row[date] = date_of(when)
            yield number, tuple(row), weight(kind, row)

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
        self._require_columns(kind)
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

    def _rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        return self._execute(statement).fetchall()

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
