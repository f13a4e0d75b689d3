"""Celery's tables in MySQL or MariaDB: unbuffered reads, many rows to an INSERT."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are escaped

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import pymysql
from pymysql.constants import COMMAND
from pymysql.cursors import SSCursor

from celery_results.stores import mysql_load
from celery_results.stores.record import date_of, moment
from celery_results.stores.sequential import DuplicateError, RefusedRowsError
from celery_results.stores.tables import COLUMNS, DATES, DatabaseTables, weight

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from celery_results.backends.database.storage import Storage
    from celery_results.stores.record import Kind, Row

_DUPLICATE: Final = 1062
# MariaDB takes a fifth more time for a row of a megabyte's statement than for one of this size.
_STATEMENT_BYTES: Final = 1 << 17
_PACKET_MARGIN: Final = 1 << 16
# What a server says of data: out of range, too long, not of that character set, not null, constraints.
_DATA: Final = {1048, 1264, 1265, 1292, 1364, 1366, 1406, 3140, 3819, 4025}


class MySQLTables(DatabaseTables):
    """Both tables of one database."""

    def __init__(self, storage: Storage, *, load: bool = False) -> None:
        """Connect to nothing yet; `load`: try LOAD DATA LOCAL, for which `storage` must allow local files."""
        super().__init__(storage, "`")
        self._load = load
        self._loads: dict[Kind, bool] = {}
        self._connection: pymysql.connections.Connection[Any] | None = None
        self._next_id: dict[Kind, bytes] = {}
        self._asked = False
        self._packet = 0
        self._backslash = True
        self.precise: dict[Kind, bool] = {}

    def connect(self) -> None:
        """Open a connection and look at the tables."""
        session: Any = self._driver.connect()
        connection = self._connection = session.connection
        mariadb = "MariaDB" in connection.get_server_info()
        ((self._packet, mode),) = self._rows("SELECT @@max_allowed_packet, @@sql_mode")
        self._backslash = "NO_BACKSLASH_ESCAPES" not in str(mode)
        # Who reads may be slowed down on purpose for longer than the server waits by default.
        self._rows("SET SESSION net_write_timeout = 600, net_read_timeout = 600")
        for kind, table in self._names.items():
            cursor = connection.cursor()
            cursor.execute(f"SELECT * FROM {table} LIMIT 0")
            self._columns[kind] = frozenset(column[0] for column in cursor.description)
            scale = {column[0]: column[5] for column in cursor.description}
            self.precise[kind] = bool(scale.get("date_done"))
            cursor.execute(f"SHOW COLUMNS FROM {table} LIKE 'id'")
            ((*_, default, extra),) = cursor.fetchall()
            numbered = default is not None or "auto_increment" in str(extra).lower()
            # To take from a sequence by name costs MariaDB a third of the time of a row.
            number = f"NEXT VALUE FOR {self._sequences[kind]}" if mariadb and not numbered else "DEFAULT"
            self._next_id[kind] = number.encode()
            self._loads[kind] = self._load and numbered and mysql_load.allowed(connection)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None and self._connection.open:
            self._connection._force_close()  # noqa: SLF001 # in the middle of an answer there is no other way
        self._connection = None
        self._asked = False

    def read(self, kind: Kind, after: int, rows: int) -> Iterator[tuple[int, Row, int]]:
        """Stream one SELECT."""
        assert self._connection is not None
        date = DATES[kind]
        with self._connection.cursor(SSCursor) as cursor:
            cursor.execute(
                f"SELECT id, {self._selected(kind)} FROM {self._names[kind]} WHERE id > {int(after)}"
                f" ORDER BY id LIMIT {int(rows)}"
            )
            for number, *values in cursor:
                when, values[date] = values[date], None
                row = [value.encode() if isinstance(value, str) else value for value in values]
                row[date] = date_of(when)
                yield int(number), tuple(row), weight(kind, row)

    def present(self, kind: Kind, ids: Sequence[bytes]) -> Collection[bytes]:
        """Look them up by the unique index."""
        key = COLUMNS[kind][0]
        # Not binary literals: compared with these, the index would be of no use.
        wanted = b",".join(self._literal(identifier, b"") for identifier in ids)
        statement = b"SELECT %b FROM %b WHERE %b IN (%b)" % (
            key.encode(),
            self._names[kind].encode(),
            key.encode(),
            wanted,
        )
        return {str(row[0]).encode() for row in self._rows(statement)}

    def insert(self, kind: Kind, rows: Sequence[Row]) -> None:
        """Send statements in one transaction; the server works on one while the next is put together."""
        self._require_columns(kind)
        if self._loads[kind] and self._loaded(kind, rows):
            return
        names = ", ".join(COLUMNS[kind])
        head = f"INSERT INTO {self._names[kind]} (id, {names}) VALUES ".encode()
        try:
            self._rows("BEGIN")
            for part in self._parts(kind, rows):
                self._answer()
                self._send(head + part)
            self._rows("COMMIT")
        except pymysql.err.MySQLError as error:
            number = error.args[0] if error.args else 0
            if number == _DUPLICATE or number in _DATA:
                self._rows("ROLLBACK")
            if number == _DUPLICATE:
                if "PRIMARY" in str(error):
                    raise self._refused_ids(kind) from error
                raise DuplicateError from error
            if number in _DATA:
                raise RefusedRowsError.of(error) from error
            raise
        except RefusedRowsError:
            # The whole is looked at once more, so it does not matter what that statement met.
            with contextlib.suppress(pymysql.err.MySQLError):
                self._answer()
            self._rows("ROLLBACK")
            raise

    def _loaded(self, kind: Kind, rows: Sequence[Row]) -> bool:
        """Try to load them; what a server does not take whole, an INSERT tells precisely."""
        assert self._connection is not None
        self._rows("BEGIN")
        whole = mysql_load.load(self._connection, self._names[kind], COLUMNS[kind], DATES[kind], rows)
        self._rows("COMMIT" if whole else "ROLLBACK")
        return whole

    def _parts(self, kind: Kind, rows: Sequence[Row]) -> Iterator[bytes]:
        part: list[bytes] = []
        size = 0
        date = DATES[kind]
        start = b"(" + self._next_id[kind]
        for row in rows:
            values = [start]
            for place, value in enumerate(row):
                if value is None:
                    values.append(b"NULL")
                elif place == date:
                    values.append(b"'%b'" % moment(value).isoformat(" ", "microseconds").encode())
                elif isinstance(value, int):
                    values.append(b"%d" % value)
                else:
                    values.append(self._literal(value))
            literal = b",".join(values) + b")"
            if len(literal) > self._packet - _PACKET_MARGIN:
                raise RefusedRowsError(f"a row of {len(literal)} bytes, above max_allowed_packet")
            if part and size + len(literal) > _STATEMENT_BYTES:
                yield b",".join(part)
                part, size = [], 0
            part.append(literal)
            size += len(literal) + 1
        yield b",".join(part)

    def _literal(self, value: bytes, introducer: bytes = b"_binary") -> bytes:
        if self._backslash:
            value = value.replace(b"\\", b"\\\\")
        return introducer + b"'%b'" % value.replace(b"'", b"''")

    def _rows(self, statement: str | bytes) -> Sequence[tuple[Any, ...]]:
        """Run one statement as it is: nothing in it is taken for a placeholder."""
        self._answer()
        self._send(statement)
        return self._answer()

    # The two halves of Connection.query; a cursor takes no bytes.

    def _send(self, statement: str | bytes) -> None:
        assert self._connection is not None
        self._connection._execute_command(COMMAND.COM_QUERY, statement)  # noqa: SLF001
        self._asked = True

    def _answer(self) -> Sequence[tuple[Any, ...]]:
        """Read the answer to what was sent, if anything was; raises what it says."""
        if not self._asked:
            return []
        assert self._connection is not None
        self._asked = False
        self._connection._read_query_result()  # noqa: SLF001
        result = self._connection._result  # noqa: SLF001
        return list(result.rows or ()) if result is not None else []
