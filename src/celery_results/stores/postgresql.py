"""Celery's tables in PostgreSQL by binary COPY, in and out."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg

from celery_results.stores.copy_rows import HEADER, TRAILER, Packer
from celery_results.stores.sequential import DuplicateError, RefusedRowsError
from celery_results.stores.tables import COLUMNS, DatabaseTables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from psycopg.abc import Buffer

    from celery_results.backends.database.storage import Storage
    from celery_results.stores.record import Kind, PackedRow, Row

# Text travels as bytea: the same bytes, and nothing is decoded on the way.
_TYPES: Final = {"date_done": "int8", "retries": "int4"}
# The server counts from 1970 for us; infinity arrives as NO_DATE.
_SINCE_1970: Final = (
    "CASE WHEN date_done BETWEEN timestamp '0001-01-01' AND timestamp '9999-12-31 23:59:59.999999'"
    " THEN date_done + interval '10957 days' WHEN date_done IS NOT NULL THEN timestamp 'infinity' END"
)
# Rows that are packed while the server takes those before.
_TOGETHER: Final = 250
# A reader that is slowed down on purpose is no runaway; what is committed here must be on the disk.
_SESSION: Final = "SET statement_timeout = 0; SET lock_timeout = '5min'; SET synchronous_commit = on"


class PostgresTables(DatabaseTables):
    """Both tables of one database."""

    def __init__(self, storage: Storage) -> None:
        """Connect to nothing yet."""
        super().__init__(storage)
        self._connection: psycopg.Connection[Any] | None = None
        self._numbered: dict[Kind, bool] = {}
        self._packers: dict[Kind, Packer] = {kind: Packer(kind) for kind in COLUMNS}
        self.packer = self._packers["results"]

    def connect(self) -> None:
        """Open a connection and look at the tables."""
        session: Any = self._driver.connect()
        self._connection = session.connection
        self._execute(_SESSION)
        for kind, table in self._names.items():
            cursor = self._execute(f"SELECT * FROM {table} LIMIT 0")
            self._columns[kind] = frozenset(column.name for column in cursor.description or ())
            default = "SELECT atthasdef FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'id'"
            found = self._rows(default, table)
            self._numbered[kind] = bool(found and found[0][0])

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def read(self, kind: Kind, after: int, rows: int) -> Iterator[tuple[int, Row, int]]:
        """Stream one COPY."""
        assert self._connection is not None
        statement = (
            f"COPY (SELECT id::bigint, {self._selected(kind, date_done=_SINCE_1970)} FROM {self._names[kind]}"
            f" WHERE id > {int(after)} ORDER BY id LIMIT {int(rows)}) TO STDOUT (FORMAT BINARY)"
        )
        with self._connection.cursor().copy(_sql(statement)) as copy:
            copy.set_types(["int8", *(_TYPES.get(name, "bytea") for name in COLUMNS[kind])])
            # As `copy.rows` does, with fewer calls to a row: what is there already is asked of libpq itself.
            parse, there = copy.formatter.parse_row, self._connection.pgconn.get_copy_data
            data: Buffer = copy.read()
            while data:
                row = parse(data)
                if row is None:
                    data = copy.read()  # behind the trailer the server says that it is done
                    continue
                yield row[0], row[1:], len(data)
                length, data = there(1)
                if length == 0:
                    data = copy.read()
                elif length < 0:
                    raise _ended(self._connection)

    def present(self, kind: Kind, ids: Sequence[bytes]) -> Collection[bytes]:
        """Look them up by the unique index."""
        key = COLUMNS[kind][0]
        wanted = [identifier.decode(errors="replace").replace("\0", "") for identifier in ids]
        found = self._rows(f"SELECT {key} FROM {self._names[kind]} WHERE {key} = ANY(%s)", wanted)
        return {row[0].encode() for row in found}

    def insert(self, kind: Kind, rows: Sequence[Row | PackedRow]) -> None:
        """Send one COPY; its end is the commit."""
        assert self._connection is not None
        self._require_columns(kind)
        names = list(COLUMNS[kind])
        ids = None if self._numbered[kind] else self._numbers(kind, len(rows))
        wide = ids is not None and self._id_type(kind) == "int8"
        if ids is not None:
            names = ["id", *names]
        statement = f"COPY {self._names[kind]} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)"
        pack = self._packers[kind].stream
        try:
            with self._connection.cursor().copy(_sql(statement)) as copy:
                copy.write(HEADER)
                for first in range(0, len(rows), _TOGETHER):
                    following = first + _TOGETHER
                    some = None if ids is None else ids[first:following]
                    copy.write(pack(rows[first:following], some, wide=wide))
                copy.write(TRAILER)
        except psycopg.errors.UniqueViolation as error:
            if (error.diag.constraint_name or "").endswith("_pkey"):
                raise self._refused_ids(kind) from error
            raise DuplicateError from error
        except (psycopg.DataError, psycopg.IntegrityError, struct.error) as error:
            raise RefusedRowsError.of(error) from error

    def _numbers(self, kind: Kind, count: int) -> list[int]:
        """Take ids from Celery's sequence, where the column has no default."""
        statement = "SELECT nextval(%s::regclass) FROM generate_series(1, %s)"
        return [row[0] for row in self._rows(statement, self._sequences[kind], count)]

    def _id_type(self, kind: Kind) -> str:
        statement = (
            "SELECT atttypid::regtype::text FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attname = 'id'"
        )
        wide = self._rows(statement, self._names[kind])[0][0] == "bigint"
        return "int8" if wide else "int4"

    def _rows(self, statement: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        return self._execute(statement, *parameters).fetchall()

    def _execute(self, statement: str, *parameters: object) -> psycopg.Cursor[Any]:
        assert self._connection is not None
        return self._connection.execute(_sql(statement), parameters or None)


def _ended(connection: psycopg.Connection[Any]) -> psycopg.Error:
    """Say why a COPY ended before its trailer."""
    result = connection.pgconn.get_result()
    if result is None or not result.error_message:
        return psycopg.OperationalError("COPY ended before its trailer")
    return psycopg.errors.error_from_result(result)


def _sql(statement: str) -> LiteralString:
    return statement
