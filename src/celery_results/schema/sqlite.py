"""SQLite: one file, write-ahead log, everything in one transaction."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from .errors import ForeignTableError, SchemaError
from .layout import TABLES, VERSION_TABLE, Step, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

TYPES = {
    "id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
    "key": "VARCHAR(155) UNIQUE",
    "status": "VARCHAR(50)",
    "bytes": "BLOB",
    "time": "DATETIME",
    "text": "TEXT",
    "string": "VARCHAR(155)",
    "integer": "INTEGER",
}


class SQLite:
    """The dialect; see :class:`layout.Dialect`."""

    def __init__(self, connection: Connection, wait_seconds: float) -> None:
        """Use this connection; wait this long for the file's lock."""
        self.connection = connection
        self.wait_seconds = wait_seconds
        self.switched = False

    def prepare(self) -> None:
        """Wait for other writers instead of failing at once."""
        self._run(f"PRAGMA busy_timeout = {int(self.wait_seconds * 1000)}")

    @contextlib.contextmanager
    def locked(self, wait_seconds: float) -> Iterator[None]:
        """Hold the write lock from the first look to the last change: all of it happens, or nothing."""
        del wait_seconds  # the busy timeout
        # A property of the file, and not to be changed in a transaction.
        self.switched = not self._is_write_ahead()
        mode = self.connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar()
        if mode not in {"wal", "memory"}:
            raise SchemaError(
                expected="a file system on which SQLite can keep a write-ahead log",
                found=f"journal mode {mode}",
                do="put the file on a local file system",
            )
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def existing(self) -> frozenset[str]:
        """Name those of our tables that are there."""
        names = {str(row[0]) for row in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return frozenset(names & {VERSION_TABLE, *(table.name for table in TABLES)})

    def plan(self) -> list[Step]:
        """Compare what is there with what should be."""
        steps: list[Step] = []
        existing = self.existing()
        for table in TABLES:
            columns = {str(row[1]) for row in self._rows(f"PRAGMA table_info({table.name})")}
            if table.name not in existing:
                body = ", ".join(f"{name} {TYPES[kind]}" for name, kind in table.columns.items())
                steps.append(
                    Step(
                        f"create {table.name}",
                        (f"CREATE TABLE {table.name} ({body})", _index(table)),
                    )
                )
                continue
            self._require_celery(table, columns)
            steps += [
                Step(
                    f"{table.name}: add column {name}",
                    (f"ALTER TABLE {table.name} ADD {name} {TYPES[kind]}",),
                )
                for name, kind in table.columns.items()
                if name not in columns
            ]
            if not self._has_date_index(table):
                steps.append(Step(f"{table.name}: index date_done", (_index(table),)))
        if self.switched or not self._is_write_ahead():
            steps.append(Step("switch to the write-ahead log", ()))  # `locked` has done it
        return steps

    def execute(self, step: Step) -> None:
        """Make one change."""
        for statement in step.statements:
            self._run(statement)
        if not step.statements:
            self.switched = False

    def _is_write_ahead(self) -> bool:
        return self.connection.exec_driver_sql("PRAGMA journal_mode").scalar() in {"wal", "memory"}

    def _require_celery(self, table: Table, columns: set[str]) -> None:
        needed = set(table.columns) - table.optional
        unique = any(
            [column[2] for column in self._rows(f"PRAGMA index_info({index[1]!r})")] == [table.key]
            for index in self._rows(f"PRAGMA index_list({table.name})")
            if index[2]
        )
        if needed - columns or not unique:
            missing = ", ".join(sorted(needed - columns)) or f"a unique {table.key}"
            raise ForeignTableError(
                expected=f"a {table.name} that Celery made",
                found=f"one without {missing}",
                do="rename that table, or use another file; nothing was changed",
            )

    def _has_date_index(self, table: Table) -> bool:
        return any(
            [column[2] for column in self._rows(f"PRAGMA index_info({index[1]!r})")] == ["date_done"]
            for index in self._rows(f"PRAGMA index_list({table.name})")
        )

    def _rows(self, statement: str) -> list[tuple[object, ...]]:
        return [tuple(row) for row in self.connection.exec_driver_sql(statement)]

    def _run(self, statement: str) -> None:
        self.connection.exec_driver_sql(statement)


def _index(table: Table) -> str:
    return f"CREATE INDEX IF NOT EXISTS {table.date_index} ON {table.name} (date_done)"
