"""The rows of the task table: found by age, read in bounded memory, deleted only if unchanged, put back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from celery_results.archive.records import COLUMNS, Record
from celery_results.backends.database.dialect import READY_STATES, TASK_SEQUENCE, qualified

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_results.backends.database.dialect import Session
    from celery_results.backends.database.storage import Storage

WINDOW: Final = 50_000  # ids that one statement looks at: none runs long, however few of them are old
GROUP_ROWS: Final = 500
GROUP_BYTES: Final = 8 * 1024 * 1024  # below max_allowed_packet, 16 MiB on MariaDB by default
_PAYLOADS: Final = ("result", "traceback", "children", "args", "kwargs", "stamps")
_REVISION_TABLE: Final = "celery_results_schema_version"


@dataclass(frozen=True)
class Candidate:
    """A row that may be archived: its id, and about how many bytes reading it takes."""

    id: int
    size: int


class Rows:
    """One connection's view of the task table."""

    def __init__(self, storage: Storage, session: Session) -> None:
        """Use this connection, which is in autocommit."""
        driver = storage.driver
        self._session = session
        self._driver = driver
        self._dialect = driver.name
        mark = "`" if driver.name == "mysql" else '"'
        schema = storage.tables.task_schema
        self.table = qualified(schema, storage.tables.task, mark)
        self._sequence = qualified(schema, TASK_SEQUENCE, mark)
        self._revision = qualified(schema, _REVISION_TABLE, mark)
        self._ready = ", ".join(f"'{state}'" for state in READY_STATES)

    def revision(self) -> str | None:
        """Give the revision of the schema; None where the login may not read it."""
        try:
            return str(self._execute(f"SELECT version_num FROM {self._revision}")[0][0])  # noqa: S608 - a constant
        except Exception as error:
            if self._driver.fault(error).name in {"MISSING", "REFUSED"}:
                return None
            raise

    def lock(self) -> bool:
        """Keep other archives off this table until the connection ends; SQLite has no such lock."""
        if self._dialect == "postgresql":
            statement = "SELECT pg_try_advisory_lock(hashtextextended(?, 0))"
            return bool(self._execute(statement, f"celery-results archive {self.table}")[0][0])
        if self._dialect == "mysql":
            statement = "SELECT GET_LOCK(CONCAT(LEFT(DATABASE(), 40), ?), 0)"
            return bool(self._execute(statement, ":celery-archive")[0][0])
        return True

    def candidates(self, cutoff: datetime, after: int = 0) -> Iterator[Candidate]:
        """Give the finished rows that are older, by id, looking at a window of ids at a time."""
        length = "length" if self._dialect == "sqlite" else "octet_length"
        size = " + ".join(f"coalesce({length}({name}), 0)" for name in _PAYLOADS)
        statement = (
            f"SELECT id, {size} FROM {self.table} WHERE id >= ? AND id < ? AND date_done < ?"  # noqa: S608
            f" AND status IN ({self._ready}) ORDER BY id"
        )
        last = int(self._execute(f"SELECT coalesce(max(id), 0) FROM {self.table}")[0][0])  # noqa: S608
        start = after + 1
        while start <= last:
            # Deleted ids leave gaps: step over them.
            found = self._execute(f"SELECT min(id) FROM {self.table} WHERE id >= ?", start)[0][0]  # noqa: S608
            if found is None:
                return
            start = int(found)
            rows = self._execute(statement, start, start + WINDOW, self._driver.moment(cutoff))
            yield from (Candidate(int(row[0]), int(row[1])) for row in rows)
            start += WINDOW

    def read(self, ids: Sequence[int], cutoff: datetime) -> list[Record]:
        """Read rows that are still finished and older, by id."""
        rows = self._execute(
            f"SELECT {', '.join(COLUMNS)} FROM {self.table} WHERE {self._among()} AND date_done < ?"  # noqa: S608
            f" AND status IN ({self._ready}) ORDER BY id",
            self._list(ids),
            self._driver.moment(cutoff),
        )
        return [Record.of_row(row) for row in rows]

    def delete_unchanged(self, keys: Sequence[tuple[int, str, str]]) -> list[int]:
        """Delete rows that are as they were read; give the ids of those that are there and have changed.

        One statement, one transaction: run again after a crash, it finds what is left to do.
        """
        among = f"{self._among()} AND"
        if self._dialect == "postgresql":
            keyed = (
                "(id, date_done, status) IN (SELECT * FROM unnest(?::bigint[], ?::timestamp[], ?::text[]))"
            )
            parameters: list[Any] = [list(column) for column in zip(*keys, strict=True)]
            parameters[1] = [datetime.fromisoformat(text) for text in parameters[1]]
        elif self._dialect == "mysql":
            keyed, parameters = "(id, date_done, status) IN ?", [tuple(keys)]
        else:
            fields = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(3))
            keyed = f"(id, date_done, status) IN (SELECT {fields} FROM json_each(?))"  # noqa: S608
            parameters = [json.dumps(keys)]
        ids = self._list([key[0] for key in keys])
        self._execute(f"DELETE FROM {self.table} WHERE {among} {keyed}", ids, *parameters)  # noqa: S608
        left = self._execute(f"SELECT id FROM {self.table} WHERE {self._among()}", ids)  # noqa: S608
        return sorted(int(row[0]) for row in left)

    def present(self, task_ids: Sequence[str]) -> set[str]:
        """Name those tasks of which the database has a row."""
        statement = f"SELECT task_id FROM {self.table} WHERE {self._among('task_id')}"  # noqa: S608
        return {str(row[0]) for row in self._execute(statement, self._list(task_ids))}

    def ids_handed_out(self) -> int | None:
        """Give a number below which no new row will get its id; None where the table sees to that itself."""
        if self._dialect == "sqlite":
            return None
        if self._dialect == "mysql" and "MariaDB" not in str(self._execute("SELECT VERSION()")[0][0]):
            return None
        statement = (
            "SELECT nextval(?)" if self._dialect == "postgresql" else f"SELECT nextval({self._sequence})"
        )
        parameters = (self._sequence,) if self._dialect == "postgresql" else ()
        return int(self._execute(statement, *parameters)[0][0])

    def insert_absent(self, records: Sequence[Record], *, keep_ids: bool) -> None:
        """Store rows of which there is none, by task or by id; those that are there stay as they are."""
        names = COLUMNS if keep_ids else COLUMNS[1:]
        row = f"({', '.join('?' * len(names))})"
        ignore = (
            " ON DUPLICATE KEY UPDATE task_id = task_id"
            if self._dialect == "mysql"
            else " ON CONFLICT DO NOTHING"
        )
        values = [value for record in records for value in self._parameters(record)[0 if keep_ids else 1 :]]
        self._execute(
            f"INSERT INTO {self.table} ({', '.join(names)}) VALUES {', '.join([row] * len(records))}{ignore}",  # noqa: S608
            *values,
        )

    def _parameters(self, record: Record) -> list[Any]:
        place = COLUMNS.index("date_done")
        values = list(record.values)
        if self._dialect == "postgresql":
            values[place] = datetime.fromisoformat(values[place])
        return values

    def _among(self, column: str = "id") -> str:
        return {
            "postgresql": f"{column} = ANY(?)",
            "mysql": f"{column} IN ?",
            "sqlite": f"{column} IN (SELECT value FROM json_each(?))",  # noqa: S608 - constants
        }[self._dialect]

    def _list(self, items: Sequence[Any]) -> object:
        if self._dialect == "sqlite":
            return json.dumps(list(items))
        return list(items) if self._dialect == "postgresql" else tuple(items)

    def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401
        # Our statements have no question mark but placeholders.
        marked = statement if self._dialect == "sqlite" else statement.replace("?", "%s")
        return self._session.execute(marked, parameters)
