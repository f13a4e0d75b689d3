"""Ask the database: one pass over the task table, and what the server keeps count of by itself.

Bounded on a live server: one statement reads the table, once, without locking a row, and ends after the time
limit. Then only the server's own estimates are given, and the report says so.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from celery_results.backends.database.dialect import qualified
from celery_results.backends.database.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery_results.backends.database.dialect import Session
    from celery_results.backends.database.storage import Storage

AGES: Final = (
    ("up to 1 hour", timedelta(hours=1)),
    ("up to 1 day", timedelta(days=1)),
    ("up to 7 days", timedelta(days=7)),
    ("up to 30 days", timedelta(days=30)),
)
OLDER: Final = "older"
UNFINISHED: Final = "unfinished"
_AFTER: Final = 1000  # rows that are looked at for a time near the oldest unfinished one


@dataclass(frozen=True)
class Unfinished:
    """The row without date_done that was stored first."""

    task_id: str
    status: str
    stored_before: datetime | None  # the earliest end of a result that was first stored after it


@dataclass(frozen=True)
class Statistics:
    """The report; counts in rows, sizes in bytes. `exact` is false where the time limit ended the pass."""

    exact: bool
    rows: int
    groups: int | None = None
    states: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    ages: dict[str, int] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    result_bytes: int | None = None
    largest_result_bytes: int | None = None
    unfinished: Unfinished | None = None
    table_bytes: int | None = None
    index_bytes: int | None = None
    dead_rows: int | None = None

    @property
    def average_result_bytes(self) -> float | None:
        """Give the mean over all rows; None where there is none."""
        return None if self.result_bytes is None or not self.rows else self.result_bytes / self.rows


def collect(storage: Storage, now: datetime, *, limit_seconds: float, names: bool) -> Statistics:
    """Look at the database; raises the driver's errors."""
    with storage.session() as session:
        ask = _Questions(storage, session)
        found = ask.sizes()
        try:
            with ask.limited(limit_seconds):
                found = _summed(found, ask.task_groups(names=names), now)
                found = replace(found, groups=ask.group_rows(), unfinished=ask.unfinished(found))
        except Exception as error:
            if storage.driver.fault(error) is not Fault.BUSY and not ask.ended:
                raise
            return replace(found, exact=False)
        return found


def _summed(found: Statistics, rows: Iterable[tuple[Any, ...]], now: datetime) -> Statistics:
    states: dict[str, int] = {}
    names: dict[str, int] = {}
    ages = dict.fromkeys((*(label for label, _ in AGES), OLDER, UNFINISHED), 0)
    days: dict[str, int] = {}
    total = size = largest = 0
    for status, name, hour, count, stored, most in rows:
        states[str(status)] = states.get(str(status), 0) + count
        if name is not None:
            names[str(name)] = names.get(str(name), 0) + count
        ages[_age(hour, now)] += count
        if hour is not None:
            days[str(hour)[:10]] = days.get(str(hour)[:10], 0) + count
        total += count
        size += int(stored or 0)
        largest = max(largest, int(most or 0))
    return replace(
        found,
        exact=True,
        rows=total,
        states=dict(sorted(states.items())),
        names=dict(sorted(names.items(), key=lambda item: (-item[1], item[0]))),
        ages=ages,
        days=dict(sorted(days.items())),
        result_bytes=size,
        largest_result_bytes=largest,
    )


def _age(hour: str | None, now: datetime) -> str:
    """Judge by the hour's beginning: a row of 7 days and 20 minutes may be counted as up to 7 days."""
    if hour is None:
        return UNFINISHED
    age = now - datetime.fromisoformat(hour) - timedelta(hours=1)
    return next((label for label, most in AGES if age < most), OLDER)


class _Questions:
    """The statements, in the dialect of the database."""

    def __init__(self, storage: Storage, session: Session) -> None:
        self._session = session
        self._tables = storage.tables
        self._dialect = storage.driver.name
        mark = "`" if self._dialect == "mysql" else '"'
        # Without parameters the drivers take a percent sign for itself.
        self._task = qualified(self._tables.task_schema, self._tables.task, mark).replace("%%", "%")
        self._group = qualified(self._tables.group_schema, self._tables.group, mark).replace("%%", "%")
        self.ended = False

    def task_groups(self, *, names: bool) -> list[tuple[Any, ...]]:
        """Give status, name, hour of date_done, rows, bytes and most bytes of result: the one pass."""
        hour = {
            "postgresql": "to_char(date_trunc('hour', date_done), 'YYYY-MM-DD HH24:00')",
            "mysql": "date_format(date_done, '%Y-%m-%d %H:00')",
            "sqlite": "strftime('%Y-%m-%d %H:00', date_done)",
        }[self._dialect]
        length = "length" if self._dialect == "sqlite" else "octet_length"
        name = "name" if names else "NULL"
        return self._session.execute(
            f"SELECT status, {name} AS task_name, {hour} AS done_hour, count(*), sum({length}(result)),"  # noqa: S608
            f" max({length}(result)) FROM {self._task} GROUP BY 1, 2, 3"
        )

    def group_rows(self) -> int:
        """Count the saved groups."""
        return int(self._session.execute(f"SELECT count(*) FROM {self._group}")[0][0])  # noqa: S608

    def unfinished(self, found: Statistics) -> Unfinished | None:
        """Find the unfinished row with the lowest id: ids are given in the order of first stores."""
        if not found.ages.get(UNFINISHED):
            return None
        rows = self._session.execute(
            f"SELECT task_id, status, id FROM {self._task} WHERE date_done IS NULL ORDER BY id LIMIT 1"  # noqa: S608
        )
        if not rows:
            return None
        task_id, status, number = rows[0]
        later = self._session.execute(
            f"SELECT min(date_done) FROM (SELECT date_done FROM {self._task} WHERE id > {int(number)}"  # noqa: S608
            f" AND date_done IS NOT NULL ORDER BY id LIMIT {_AFTER}) later"
        )[0][0]
        moment = datetime.fromisoformat(later) if isinstance(later, str) else later
        return Unfinished(str(task_id), str(status), moment)

    def sizes(self) -> Statistics:
        """Read what the server knows without reading the table; its number of rows is an estimate."""
        if self._dialect == "postgresql":
            row = self._session.execute(
                "SELECT greatest(c.reltuples, 0)::bigint, pg_table_size(c.oid), pg_indexes_size(c.oid),"
                " pg_stat_get_dead_tuples(c.oid) FROM pg_class c WHERE c.oid = %s::regclass",
                (self._task,),
            )[0]
            return Statistics(
                exact=False,
                rows=int(row[0]),
                table_bytes=int(row[1]),
                index_bytes=int(row[2]),
                dead_rows=row[3],
            )
        if self._dialect == "mysql":
            row = self._session.execute(
                "SELECT table_rows, data_length, index_length FROM information_schema.tables"
                " WHERE table_schema = coalesce(%s, database()) AND table_name = %s",
                (self._tables.task_schema, self._tables.task),
            )[0]
            return Statistics(
                exact=False, rows=int(row[0] or 0), table_bytes=int(row[1] or 0), index_bytes=int(row[2] or 0)
            )
        pages = self._session.execute(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        )
        return Statistics(exact=False, rows=0, table_bytes=int(pages[0][0]))

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """End statements after that time."""
        if self._dialect == "postgresql":
            self._session.execute(f"SET statement_timeout = {int(seconds * 1000)}")
        elif self._dialect == "mysql":
            mariadb = "MariaDB" in str(self._session.execute("SELECT VERSION()")[0][0])
            setting = (
                f"max_statement_time = {seconds}"
                if mariadb
                else f"max_execution_time = {int(seconds * 1000)}"
            )
            self._session.execute(f"SET SESSION {setting}")
        else:
            timer = threading.Timer(seconds, self._interrupt)
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()
            return
        yield

    def _interrupt(self) -> None:
        self.ended = True
        self._session.connection.interrupt()  # type: ignore[attr-defined] # SQLite's session
