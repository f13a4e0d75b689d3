"""MySQL and MariaDB by PyMySQL: READ COMMITTED, UTC, utf8mb4, strict, autocommit."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

import re
import select
from typing import TYPE_CHECKING, Any, Final

import pymysql

from celery_results.backends.database import fork
from celery_results.backends.database.dialect import (
    EXTENDED_COLUMNS,
    GROUP_SEQUENCE,
    READ_COLUMNS,
    READY_STATES,
    TASK_SEQUENCE,
    Statements,
    Tables,
    columns,
    qualified,
)
from celery_results.backends.database.errors import Fault
from celery_results.backends.database.url import truth

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping, Sequence

    from celery_results.backends.database.url import Address

CONNECTION_DEFAULTS: Final = {"connect_timeout": 5, "read_timeout": 60, "write_timeout": 60}
# REPEATABLE READ lets cleanup block inserts (gap locks). Without strict mode long results are cut off.
SESSION: Final = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET time_zone = '+00:00', sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",
)
_NUMBERS: Final = {"connect_timeout", "read_timeout", "write_timeout", "max_allowed_packet"}
_SWITCHES: Final = {"ssl_verify_cert", "ssl_verify_identity", "ssl_check_hostname", "ssl_disabled"}
# PyMySQL's own 0, client errors, server shutdown, connection killed, closed for inactivity.
_LOST: Final = {0, 1053, 1079, 1080, 1152, 1159, 1160, 1161, 1927, 2002, 2003, 2006, 2013, 2055, 4031}
# Too many connections, disk or table full, record changed, lock timeout, deadlock, statement timeouts.
_BUSY: Final = {1020, 1021, 1040, 1114, 1203, 1205, 1213, 1226, 1317, 1969, 3024}
_READ_ONLY: Final = {1290, 1792, 1836}
_MISSING: Final = {1054, 1146, 4091}
_NEXT_VALUE: Final = re.compile(r"NEXT VALUE FOR [^,]+")


class MySQLSession:
    """A connection with one cursor for all its statements."""

    def __init__(self, connection: pymysql.connections.Connection[Any], *, sequences: bool) -> None:
        """Take a connection in autocommit; `sequences`: ids come from Celery's (MariaDB)."""
        self.connection = connection
        self.changed = 0
        self._sequences = sequences
        self._cursor = connection.cursor()
        self._poll = select.poll()
        self._poll.register(connection._sock.fileno(), select.POLLIN)  # noqa: SLF001 # nothing public gives it

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; on MySQL the id is left to AUTO_INCREMENT, as Celery does."""
        if not self._sequences:
            statement = _NEXT_VALUE.sub("NULL", statement)
        cursor = self._cursor
        self.changed = cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []

    def stale(self) -> bool:
        """Look for a farewell in the socket: an idle server says nothing else."""
        return not self.connection.open or bool(self._poll.poll(0))

    def close(self) -> None:
        """Say goodbye to the server."""
        if self.connection.open:
            self.connection.close()

    def abandon(self) -> None:
        """Leave the parent's socket: its reader may be locked by a thread that waits for an answer."""
        fork.blind(self.connection._sock.fileno())  # noqa: SLF001 # nothing public gives it


class MySQLDriver:
    """One database of MySQL or MariaDB."""

    name = "mysql"

    def __init__(self, address: Address, arguments: Mapping[str, Any]) -> None:
        """Take the address; `arguments` are PyMySQL's own and win over it.

        The query may hold ssl_ca, ssl_cert, ssl_key, ssl_verify_cert, ssl_verify_identity (or SQLAlchemy's
        ssl_check_hostname), unix_socket, charset and PyMySQL's timeouts. With ssl_ca, chain and name are
        verified unless the query says false; without it the connection is made as the server likes.
        """
        self.address = address
        query = {name: _converted(name, text) for name, text in address.query}
        name_checked = query.pop("ssl_check_hostname", True)
        if query.get("ssl_ca"):
            query.setdefault("ssl_verify_cert", True)
            query.setdefault("ssl_verify_identity", name_checked)
        given = {
            "host": address.host,
            "port": address.port,
            "user": address.user,
            "password": address.password,
            "database": address.database,
        }
        self._arguments: dict[str, Any] = {
            **CONNECTION_DEFAULTS,
            "charset": "utf8mb4",
            **{name: value for name, value in given.items() if value},
            **query,
            **arguments,
            "autocommit": True,
        }

    def connect(self) -> MySQLSession:
        """Open a connection and set its session up."""
        with fork.held_off():
            connection = pymysql.connect(**self._arguments)
        cursor = connection.cursor()
        for statement in SESSION:
            cursor.execute(statement)
        sequences = "MariaDB" in connection.get_server_info()
        return MySQLSession(connection, sequences=sequences)

    def fault(self, error: BaseException) -> Fault:  # a table in words
        """Judge by error number."""
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return Fault.LOST  # PyMySQL lets some errors of the socket through
        if not isinstance(error, pymysql.err.MySQLError):
            return Fault.FOREIGN
        number = error.args[0] if error.args else 0
        if number in _LOST:
            return Fault.LOST
        if number in _BUSY:
            return Fault.BUSY
        if number in _READ_ONLY:
            return Fault.READ_ONLY
        return Fault.MISSING if number in _MISSING else Fault.REFUSED

    def ids(self, task_ids: Sequence[str]) -> object:
        """Give a tuple, which PyMySQL writes as a list in brackets."""
        return tuple(task_ids)

    def moment(self, value: dt.datetime | None) -> dt.datetime | None:
        """Leave it: the driver knows naive times."""
        return value

    def statements(self, tables: Tables) -> Statements:
        """Give the SQL of these tables."""
        task = qualified(tables.task_schema, tables.task, "`")
        group = qualified(tables.group_schema, tables.group, "`")
        ready = ", ".join(f"'{state}'" for state in READY_STATES)
        core = ", ".join(READ_COLUMNS)
        full = f"{core}, {', '.join(EXTENDED_COLUMNS)}"
        return Statements(
            store=_store(task, tables.task_schema, extended=False),
            store_extended=_store(task, tables.task_schema, extended=True),
            select=f"SELECT {core} FROM {task} WHERE task_id = %s",
            select_extended=f"SELECT {full} FROM {task} WHERE task_id = %s",
            select_many=f"SELECT {core} FROM {task} WHERE task_id IN %s",
            select_many_extended=f"SELECT {full} FROM {task} WHERE task_id IN %s",
            count_ready=f"SELECT count(*) FROM {task} WHERE task_id IN %s AND status IN ({ready})",
            exists=f"SELECT 1 FROM {task} WHERE task_id = %s",
            forget=f"DELETE FROM {task} WHERE task_id = %s",
            save_group=(
                f"INSERT INTO {group} (id, taskset_id, result, date_done)"
                f" VALUES ({_next(GROUP_SEQUENCE, tables.group_schema)}, %s, %s, %s)"
                " ON DUPLICATE KEY UPDATE result = VALUES(result), date_done = VALUES(date_done)"
            ),
            select_group=f"SELECT taskset_id, result, date_done FROM {group} WHERE taskset_id = %s",
            delete_group=f"DELETE FROM {group} WHERE taskset_id = %s",
        )


def open_driver(address: Address, arguments: Mapping[str, Any]) -> MySQLDriver:
    """Give the driver of one database."""
    return MySQLDriver(address, arguments)


def _next(sequence: str, schema: str | None = None) -> str:
    return f"NEXT VALUE FOR {qualified(schema, sequence, '`')}"


def _converted(name: str, text: str) -> object:
    if name in _NUMBERS:
        return int(text)
    return truth(name, text) if name in _SWITCHES else text


def _store(table: str, schema: str | None, *, extended: bool) -> str:
    """Build the upsert: a stored SUCCESS is final, and stamps stay where none are given.

    Assignments run from left to right and see each other, so status comes last.
    """
    names = columns(extended=extended)
    values = ", ".join(["%s"] * (len(names) + 1))
    kept = {"stamps": "COALESCE(VALUES(stamps), stamps)"}
    changes = ", ".join(
        f"{name} = IF(status <=> 'SUCCESS', {name}, {kept.get(name, f'VALUES({name})')})"
        for name in (*names[1:], names[0])
    )
    return (
        f"INSERT INTO {table} (id, task_id, {', '.join(names)})"
        f" VALUES ({_next(TASK_SEQUENCE, schema)}, {values})"
        f" ON DUPLICATE KEY UPDATE {changes}"
    )
