"""Celery's tables in PostgreSQL by binary COPY, in and out."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg

from celery_results.backends.database.dialect import GROUP_SEQUENCE, TASK_SEQUENCE, qualified
from celery_results.stores.record import GROUP_DATE, TASK_DATE
from celery_results.stores.sequential import (
    COLUMNS,
    DuplicateError,
    RefusedRowsError,
    refused_ids,
    require_columns,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from celery_results.backends.database.errors import Fault
    from celery_results.backends.database.storage import Storage
    from celery_results.stores.record import Kind, Row

# PostgreSQL counts from 2000. Text travels as bytea: the same bytes, and nothing is decoded on the way.
_EPOCH: Final = 946_684_800_000_000
_TYPES: Final = {"date_done": "int8", "retries": "int4"}
_DATES: Final[dict[Kind, int]] = {"results": TASK_DATE, "groups": GROUP_DATE}
# A reader that is slowed down on purpose is no runaway; what is committed here must be on the disk.
_SESSION: Final = "SET statement_timeout = 0; SET lock_timeout = '5min'; SET synchronous_commit = on"


class PostgresTables:
    """Both tables of one database."""

    def __init__(self, storage: Storage) -> None:
        """Connect to nothing yet."""
        names = storage.tables
        self._driver = storage.driver
        self._names: dict[Kind, str] = {
            "results": qualified(names.task_schema, names.task).replace("%%", "%"),
            "groups": qualified(names.group_schema, names.group).replace("%%", "%"),
        }
        self._sequences: dict[Kind, str] = {
            "results": qualified(names.task_schema, TASK_SEQUENCE).replace("%%", "%"),
            "groups": qualified(names.group_schema, GROUP_SEQUENCE).replace("%%", "%"),
        }
        self._connection: psycopg.Connection[Any] | None = None
        self._columns: dict[Kind, frozenset[str]] = {}
        self._numbered: dict[Kind, bool] = {}

    def connect(self) -> None:
        """Open a connection and look at the tables."""
        session: Any = self._driver.connect()
        self._connection = session.connection
        self._execute(_SESSION)
        for kind, table in self._names.items():
            cursor = self._execute(f"SELECT * FROM {table} LIMIT 0")
            self._columns[kind] = frozenset(column.name for column in cursor.description or ())
            default = "SELECT atthasdef FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'id'"
            rows = self._execute(default, table).fetchall()
            self._numbered[kind] = bool(rows and rows[0][0])

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def fault(self, error: BaseException) -> Fault:
        """Judge as the backend does."""
        return self._driver.fault(error)

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """Ask the primary key."""
        first, last = self._execute(f"SELECT min(id), max(id) FROM {self._names[kind]}").fetchall()[0]
        return int(first or 0), int(last or 0)

    def read(self, kind: Kind, after: int, rows: int) -> Iterator[tuple[int, Row]]:
        """Stream one COPY."""
        assert self._connection is not None
        names = [name if name in self._columns[kind] else f"NULL AS {name}" for name in COLUMNS[kind]]
        statement = (
            f"COPY (SELECT id::bigint, {', '.join(names)} FROM {self._names[kind]} WHERE id > {int(after)}"
            f" ORDER BY id LIMIT {int(rows)}) TO STDOUT (FORMAT BINARY)"
        )
        date = _DATES[kind] + 1
        with self._connection.cursor().copy(_sql(statement)) as copy:
            copy.set_types(["int8", *(_TYPES.get(name, "bytea") for name in COLUMNS[kind])])
            for row in copy.rows():
                if row[date] is None:
                    yield row[0], row[1:]
                else:
                    yield row[0], (*row[1:date], row[date] + _EPOCH, *row[date + 1 :])

    def present(self, kind: Kind, ids: Sequence[bytes]) -> Collection[bytes]:
        """Look them up by the unique index."""
        key = COLUMNS[kind][0]
        wanted = [identifier.decode(errors="replace").replace("\0", "") for identifier in ids]
        found = self._execute(f"SELECT {key} FROM {self._names[kind]} WHERE {key} = ANY(%s)", wanted)
        return {row[0].encode() for row in found.fetchall()}

    def insert(self, kind: Kind, rows: Sequence[Row]) -> None:
        """Send one COPY; its end is the commit."""
        assert self._connection is not None
        require_columns(kind, self._names[kind], self._columns[kind])
        date = _DATES[kind]
        names = list(COLUMNS[kind])
        types = [_TYPES.get(name, "bytea") for name in names]
        numbers = None if self._numbered[kind] else self._numbers(kind, len(rows))
        if numbers:
            names, types = ["id", *names], [self._id_type(kind), *types]
        statement = f"COPY {self._names[kind]} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"
        try:
            with self._connection.cursor().copy(_sql(statement)) as copy:
                copy.set_types(types)
                write = copy.write_row
                for place, row in enumerate(rows):
                    sent: Row = row
                    if row[date] is not None:
                        sent = (*row[:date], row[date] - _EPOCH, *row[date + 1 :])
                    write((numbers[place], *sent) if numbers else sent)
        except psycopg.errors.UniqueViolation as error:
            if (error.diag.constraint_name or "").endswith("_pkey"):
                raise refused_ids(self._names[kind], self._sequences[kind]) from error
            raise DuplicateError from error
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RefusedRowsError.of(error) from error

    def _numbers(self, kind: Kind, count: int) -> list[int]:
        """Take ids from Celery's sequence, where the column has no default."""
        statement = "SELECT nextval(%s::regclass) FROM generate_series(1, %s)"
        return [row[0] for row in self._execute(statement, self._sequences[kind], count).fetchall()]

    def _id_type(self, kind: Kind) -> str:
        statement = (
            "SELECT atttypid::regtype::text FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attname = 'id'"
        )
        wide = self._execute(statement, self._names[kind]).fetchall()[0][0] == "bigint"
        return "int8" if wide else "int4"

    def _execute(self, statement: str, *parameters: object) -> psycopg.Cursor[Any]:
        assert self._connection is not None
        return self._connection.execute(_sql(statement), parameters or None)


def _sql(statement: str) -> LiteralString:
    return statement
