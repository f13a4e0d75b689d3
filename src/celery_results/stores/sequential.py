"""What the SQL databases have in common: keyset reading by id, and inserting what is absent.

Insert-if-absent is done by looking and inserting, under the unique index on the id: an insert that meets a
row of somebody else is rolled back and done again without it. Unlike `INSERT IGNORE` or a clause for
conflicts this takes no cut-off value and no clash of row numbers for "is there already", needs no temporary
table and no right to make one, and writes nothing where everything is there.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from celery_results.stores.record import (
    KINDS,
    NO_DATE,
    NO_RESULT,
    Batch,
    Failure,
    Form,
    Kind,
    Position,
    Written,
    now_ms,
    text,
)
from celery_results.stores.tables import COLUMNS, DATES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from celery_results.backends.database.errors import Fault
    from celery_results.stores.copy_rows import Packer
    from celery_results.stores.record import PackedRow, Row

_ATTEMPTS: Final = 6
_BATCHES: Final = 8
_MARGIN: Final = 60_000_000  # microseconds
# A row takes about this much beside its payloads, in memory and in a statement.
_ROW_BYTES: Final = 400


class DuplicateError(Exception):
    """A row of that id is there; nothing of the batch was stored."""


class RefusedRowsError(Exception):
    """The server does not take the data of at least one row; nothing of the batch was stored."""

    @classmethod
    def of(cls, error: BaseException) -> RefusedRowsError:
        """Keep the first line of what the server says, without the detail that quotes the row."""
        lines = str(error).strip().splitlines()
        return cls(lines[0][:200] if lines else type(error).__name__)


class Tables(Protocol):
    """Celery's two tables in one database, each call on one connection."""

    packer: Packer | None  # where `insert` takes packed results too

    def connect(self) -> None:
        """Open a connection for long reads and durable writes; raises the driver's error."""

    def close(self) -> None:
        """Close it."""

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """Give the lowest and the highest id; 0, 0 for an empty table."""

    def read(self, kind: Kind, after: int, rows: int) -> Iterator[tuple[int, Row, int]]:
        """Give (id, row, about its bytes) by id, so many after one, as they come from the server."""

    def present(self, kind: Kind, ids: Sequence[bytes]) -> Collection[bytes]:
        """Name those of which there is a row."""

    def insert(self, kind: Kind, rows: Sequence[Any]) -> None:
        """Store rows in one transaction.

        Raises DuplicateError, RefusedRowsError, StoreError or the driver's error.
        """


class _SqlStore:
    form: Form = "rows"

    def __init__(self, tables: Tables) -> None:
        """Connect to nothing yet."""
        self._tables = tables

    def connect(self) -> None:
        """Open a connection."""
        self._tables.close()
        self._tables.connect()

    def identity(self) -> str:
        """Give a constant: a restart loses no row and no id."""
        return "database"

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""
        return self._tables.fault(error)

    def ping(self) -> None:
        """Look one result up."""
        self._tables.present("results", [NO_RESULT])

    def close(self) -> None:
        """Close the connection."""
        self._tables.close()


class SqlSource(_SqlStore):
    """A database that is read, results first; a position is {"results": last id} or {"groups": last id}."""

    def batches(self, position: Position | None, rows: int, size: int) -> Iterator[Batch]:
        """Read both tables by id; no statement outlives a batch, so none holds back the server's clean-up."""
        after = dict(position or {})
        if "groups" not in after:
            yield from self._read("results", after.get("results", 0), rows, size)
        yield from self._read("groups", after.get("groups", 0), rows, size)

    def _read(self, kind: Kind, after: int, rows: int, size: int) -> Iterator[Batch]:
        first, last = self._tables.bounds(kind)
        date = DATES[kind]
        while True:
            batch, seen, weight = Batch({kind: after}, 0.0), 0, 0
            records = batch.of(kind)
            for after, row, length in self._tables.read(kind, after, rows):  # noqa: B020, PLR1704 - the last one's
                seen += 1
                if row[0] is None:
                    batch.failures.append(Failure(kind, f"row {after}", "a row without an id"))
                elif row[date] == NO_DATE:
                    reason = "date_done is no date between the years 1 and 9999"
                    batch.failures.append(Failure(kind, text(row[0]), reason))
                else:
                    records.append(row)
                weight += _ROW_BYTES + length
                if weight >= size:
                    batch.size = weight
                    yield self._placed(batch, kind, after, first, last)
                    batch, weight = Batch({kind: after}, 0.0), 0
                    records = batch.of(kind)
            if weight:
                batch.size = weight
                yield self._placed(batch, kind, after, first, last)
            if seen < rows:
                return

    @staticmethod
    def _placed(batch: Batch, kind: Kind, after: int, first: int, last: int) -> Batch:
        batch.position = {kind: after}
        # Groups are few: they are the last step of the bar.
        done = min(1.0, (after - first + 1) / max(1, last - first + 1))
        batch.fraction = done * 0.99 if kind == "results" else 0.99 + done * 0.01
        return batch


class SqlTarget(_SqlStore):
    """A database that is filled."""

    def __init__(self, tables: Tables) -> None:
        """Connect to nothing yet."""
        super().__init__(tables)
        self.packer = tables.packer
        self.rows = 5000  # each write ends with a commit
        self._there: dict[Kind, _There] = {kind: _There(kind) for kind in KINDS}

    def write(self, kind: Kind, records: Sequence[Row | PackedRow]) -> Written:
        """Store what is absent; a row that the server refuses is told, the others are stored."""
        done = Written()
        there = self._there[kind]
        found = self._present(kind, there.doubtful(records))
        names = {row[0] for row in found}
        absent = [row for row in records if row[0] not in names] if names else records
        try:
            if absent:
                self._tables.insert(kind, absent)
            done.copied = len(absent)
        except (DuplicateError, RefusedRowsError):
            self._store(kind, list({row[0]: row for row in absent}.values()), done, found)
        done.present = len(records) - done.copied - len(done.failures)
        there.learn(found)
        return done

    def _present(self, kind: Kind, rows: Sequence[Row | PackedRow]) -> list[Row | PackedRow]:
        if not rows:
            return []
        names = self._tables.present(kind, [row[0] for row in rows])
        return [row for row in rows if row[0] in names]

    def _store(
        self,
        kind: Kind,
        rows: Sequence[Row | PackedRow],
        done: Written,
        found: list[Row | PackedRow],
    ) -> None:
        """Look and insert; halve what the server refuses until the one row is found."""
        for _ in range(_ATTEMPTS):
            there = self._present(kind, rows)
            found += there
            names = {row[0] for row in there}
            absent = [row for row in rows if row[0] not in names]
            if not absent:
                return
            try:
                self._tables.insert(kind, absent)
            except DuplicateError:
                reason = "another row clashes with it, though none has this id"
                continue
            except RefusedRowsError as error:
                reason = str(error)
                break
            done.copied += len(absent)
            return
        if len(absent) == 1:
            done.failures.append(Failure(kind, text(absent[0][0]), reason))
            return
        half = len(absent) // 2
        self._store(kind, absent[:half], done, found)
        self._store(kind, absent[half:], done, found)


class _There:
    """Which rows of a batch may be in the target already, and are worth a look before the insert.

    What others have stored there while this source was in use is what ended lately: rows as young as those
    that were found there in the last batches, twice as old ones too. It is a guess that saves a look at every
    id; the index decides.
    """

    def __init__(self, kind: Kind) -> None:
        self._place = DATES[kind]
        self._width = len(COLUMNS[kind])
        # The oldest of each of the last batches, None where nothing was there.
        self._oldest: deque[int | None] = deque(maxlen=_BATCHES)

    def doubtful(self, rows: Sequence[Row | PackedRow]) -> list[Row | PackedRow]:
        """Choose them."""
        oldest = min((date for date in self._oldest if date is not None), default=None)
        if oldest is None:
            return []
        since = oldest - abs(now_ms() * 1000 - oldest) - _MARGIN
        return [row for row in rows if (date := self._date(row)) is None or date >= since]

    def learn(self, found: Sequence[Row | PackedRow]) -> None:
        """Take what was found of a batch."""
        now = now_ms() * 1000
        dates = (self._date(row) for row in found)
        self._oldest.append(min((now if date is None else date for date in dates), default=None))

    def _date(self, row: Row | PackedRow) -> int | None:
        # The last of a packed row.
        return cast("int | None", row[self._place if len(row) == self._width else -1])
