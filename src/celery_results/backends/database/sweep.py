"""How each database finds and deletes one batch of expired rows without rereading what it has passed."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings; values are parameters

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from celery_results.backends.database.dialect import qualified

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    from celery_results.backends.database.dialect import Driver, Session

# Of 8 KiB each. A window that finds nothing grows, so that a table with little to delete is read fast.
FIRST_PAGES: Final = 64
MOST_PAGES: Final = 8192
# MariaDB turns longer lists into a subquery (in_predicate_conversion_threshold, 1000), and a DELETE with one
# reads the whole table.
MOST_LISTED: Final = 500
_BTREE: Final = (
    "SELECT count(*) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam"
    " JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]"
    " WHERE x.indrelid = %s::regclass AND x.indisvalid AND m.amname = 'btree' AND a.attname = 'date_done'"
    " AND x.indpred IS NULL"
)
_MYSQL_INDEX: Final = (
    "SELECT count(*) FROM information_schema.statistics WHERE table_schema = COALESCE(%s, DATABASE())"
    " AND table_name = %s AND column_name = 'date_done' AND seq_in_index = 1"
)
_SQLITE_INDEX: Final = (
    "SELECT count(*) FROM pragma_index_list(?) l, pragma_index_info(l.name) c"
    " WHERE c.seqno = 0 AND c.name = 'date_done'"
)


class Sweep(Protocol):
    """One pass over a table, in batches that are transactions of their own."""

    def expired(self, schema: str | None, table: str, cutoff: dt.datetime) -> Iterator[list[int]]:
        """Delete rows with date_done before the cutoff; give the ids of each batch."""

    def unfinished(
        self, schema: str | None, table: str, cutoff: dt.datetime, newest_expired: int
    ) -> Iterator[int]:
        """Delete rows without date_done whose id proves their age; give the number of each batch."""


def sweep_for(driver: Driver, session: Session, batch: int) -> Sweep:
    """Choose by database; `batch` is in rows."""
    if driver.name == "postgresql":
        return PostgresSweep(session, batch)
    return KeySweep(driver, session, batch)


class PostgresSweep:
    """Along a btree on date_done where there is one, else along the pages of the table.

    A BRIN index cannot say where the next expired row is, and each batch through it would read the dead rows
    of all batches before. Windows of pages read the table once. Rows that a store holds are left to the next
    cleanup (SKIP LOCKED), so neither waits for the other.
    """

    def __init__(self, session: Session, batch: int) -> None:
        """Use `session` for everything."""
        self._session = session
        self._batch = batch

    def expired(self, schema: str | None, table: str, cutoff: dt.datetime) -> Iterator[list[int]]:
        """See `Sweep`."""
        name = qualified(schema, table)
        indexed = self._session.execute(_BTREE, (name.replace("%%", "%"),))[0][0]
        return self._along_index(name, cutoff) if indexed else self._along_pages(name, cutoff)

    def _along_index(self, name: str, cutoff: dt.datetime) -> Iterator[list[int]]:
        statement = self._delete(
            name,
            "date_done < %s AND date_done >= %s::timestamp ORDER BY date_done LIMIT %s",
            "id, date_done",
        )
        reached: Any = "-infinity"
        while True:
            rows = self._session.execute(statement, (cutoff, reached, self._batch))
            yield [row[0] for row in rows]
            if len(rows) < self._batch:
                return
            reached = max(row[1] for row in rows)

    def _along_pages(self, name: str, cutoff: dt.datetime) -> Iterator[list[int]]:
        statement = self._delete(
            name, "ctid >= %s::text::tid AND ctid < %s::text::tid AND date_done < %s", "id"
        )
        size = "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int"
        last = int(self._session.execute(size, (name.replace("%%", "%"),))[0][0])
        page, pages = 0, FIRST_PAGES
        while page < last:
            window = (f"({page},0)", f"({page + pages},0)", cutoff)
            ids = [row[0] for row in self._session.execute(statement, window)]
            yield ids
            page += pages
            growth = self._batch / len(ids) if ids else 4.0
            pages = int(min(max(pages * min(growth, 4.0), 1), MOST_PAGES))

    def unfinished(
        self, schema: str | None, table: str, cutoff: dt.datetime, newest_expired: int
    ) -> Iterator[int]:
        """See `Sweep`."""
        name = qualified(schema, table)
        oldest_alive = self._session.execute(f"SELECT min(id) FROM {name} WHERE date_done >= %s", (cutoff,))
        before = min(newest_expired, oldest_alive[0][0] or newest_expired)
        statement = self._delete(name, "id > %s AND id < %s AND date_done IS NULL ORDER BY id LIMIT %s", "id")
        reached = -1
        while True:
            rows = self._session.execute(statement, (reached, before, self._batch))
            yield len(rows)
            if len(rows) < self._batch:
                return
            reached = max(row[0] for row in rows)

    @staticmethod
    def _delete(name: str, condition: str, returned: str) -> str:
        return (
            f"DELETE FROM {name} WHERE ctid = ANY(ARRAY("
            f"SELECT ctid FROM {name} WHERE {condition} FOR UPDATE SKIP LOCKED)) RETURNING {returned}"
        )


class KeySweep:
    """MySQL, MariaDB and SQLite: look for ids, in the order of date_done or of the ids, and delete these.

    The look locks nothing (READ COMMITTED); the delete locks its rows only and looks at date_done again.
    """

    def __init__(self, driver: Driver, session: Session, batch: int) -> None:
        """Use `session` for everything."""
        self._driver = driver
        self._session = session
        self._batch = batch
        self._is_mysql = driver.name == "mysql"
        self._in = "id IN %s" if self._is_mysql else "id IN (SELECT value FROM json_each(?))"

    def expired(self, schema: str | None, table: str, cutoff: dt.datetime) -> Iterator[list[int]]:
        """See `Sweep`."""
        name = self._qualified(schema, table)
        moment = self._driver.moment(cutoff)
        delete = self._sql(f"DELETE FROM {name} WHERE {self._in} AND date_done < ?")
        for ids in self._looked_up(schema, table, name, moment):
            for part in self._parts(ids):
                self._session.execute(delete, (self._ids(part), moment))
            yield ids

    def _looked_up(self, schema: str | None, table: str, name: str, moment: object) -> Iterator[list[int]]:
        indexed = (
            self._session.execute(_MYSQL_INDEX, (schema, table))
            if self._is_mysql
            else self._session.execute(_SQLITE_INDEX, (table,))
        )
        order = "date_done" if indexed[0][0] else "id"
        reached: object = "1000-01-01 00:00:00" if indexed[0][0] else -1
        comparison = ">=" if indexed[0][0] else ">"
        look = self._sql(
            f"SELECT id, {order} FROM {name} WHERE date_done < ? AND {order} {comparison} ?"
            f" ORDER BY {order} LIMIT ?"
        )
        while True:
            rows = self._session.execute(look, (moment, reached, self._batch))
            yield [row[0] for row in rows]
            if len(rows) < self._batch:
                return
            reached = rows[-1][1]

    def unfinished(
        self, schema: str | None, table: str, cutoff: dt.datetime, newest_expired: int
    ) -> Iterator[int]:
        """See `Sweep`."""
        name = self._qualified(schema, table)
        alive = self._session.execute(
            self._sql(f"SELECT min(id) FROM {name} WHERE date_done >= ?"), (self._driver.moment(cutoff),)
        )
        before = min(newest_expired, alive[0][0] or newest_expired)
        look = self._sql(
            f"SELECT id FROM {name} WHERE id > ? AND id < ? AND date_done IS NULL ORDER BY id LIMIT ?"
        )
        delete = self._sql(f"DELETE FROM {name} WHERE {self._in} AND date_done IS NULL")
        reached = -1
        while True:
            ids = [row[0] for row in self._session.execute(look, (reached, before, self._batch))]
            deleted = 0
            for part in self._parts(ids):
                self._session.execute(delete, (self._ids(part),))
                deleted += self._session.changed
                reached = part[-1]
            yield deleted
            if len(ids) < self._batch:
                return

    def _qualified(self, schema: str | None, table: str) -> str:
        return qualified(schema, table, "`" if self._is_mysql else '"')

    def _sql(self, statement: str) -> str:
        return statement.replace("?", "%s") if self._is_mysql else statement

    def _ids(self, ids: list[int]) -> object:
        return tuple(ids) if self._is_mysql else f"[{','.join(map(str, ids))}]"

    def _parts(self, ids: list[int]) -> Iterator[list[int]]:
        size = MOST_LISTED if self._is_mysql else self._batch
        for begin in range(0, len(ids), size):
            yield ids[begin : begin + size]
