"""What Celery's two tables have in common in every database: names, columns, range of ids."""

# ruff: noqa: S608 # names are quoted and come from the operator's settings

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from celery_results.backends.database.dialect import GROUP_SEQUENCE, TASK_SEQUENCE, qualified
from celery_results.stores.errors import StoreError
from celery_results.stores.record import GROUP_COLUMNS, GROUP_DATE, PAYLOADS, TASK_COLUMNS, TASK_DATE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_results.backends.database.errors import Fault
    from celery_results.backends.database.storage import Storage
    from celery_results.stores.copy_rows import Packer
    from celery_results.stores.record import Kind

COLUMNS: Final[dict[Kind, tuple[str, ...]]] = {"results": TASK_COLUMNS, "groups": GROUP_COLUMNS}
# Where date_done stands in a row.
DATES: Final[dict[Kind, int]] = {"results": TASK_DATE, "groups": GROUP_DATE}
# The values that may be large; the others are counted as if they were all alike.
_LARGE: Final[dict[Kind, Callable[[Sequence[Any]], tuple[bytes | None, ...]]]] = {
    "results": itemgetter(*(TASK_COLUMNS.index(name) for name in (*PAYLOADS, "traceback"))),
    "groups": itemgetter(slice(1, 2)),
}


def weight(kind: Kind, row: Sequence[Any]) -> int:
    """Count the bytes of what may be large in a row."""
    return sum(map(len, filter(None, _LARGE[kind](row))))


class DatabaseTables:
    """Both tables of one database; who derives connects, fills `_columns` and gives `_rows`."""

    packer: Packer | None = None

    def __init__(self, storage: Storage, mark: str = '"') -> None:
        """Connect to nothing yet; `mark` is what the database quotes names with."""

        def plain(schema: str | None, name: str) -> str:
            return qualified(schema, name, mark).replace("%%", "%")

        names = storage.tables
        self._driver = storage.driver
        self._names: dict[Kind, str] = {
            "results": plain(names.task_schema, names.task),
            "groups": plain(names.group_schema, names.group),
        }
        self._sequences: dict[Kind, str] = {
            "results": plain(names.task_schema, TASK_SEQUENCE),
            "groups": plain(names.group_schema, GROUP_SEQUENCE),
        }
        self._columns: dict[Kind, frozenset[str]] = {}

    def fault(self, error: BaseException) -> Fault:
        """Judge as the backend does."""
        return self._driver.fault(error)

    def bounds(self, kind: Kind) -> tuple[int, int]:
        """Ask the primary key."""
        ((first, last),) = self._rows(f"SELECT min(id), max(id) FROM {self._names[kind]}")
        return int(first or 0), int(last or 0)

    def _rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """Run one statement without parameters and give all of its answer; raises the driver's error."""
        raise NotImplementedError

    def _selected(self, kind: Kind, **instead: str) -> str:
        """Name what to select for `COLUMNS`, `instead` of some columns something made of them.

        A table of an older Celery lacks some, which are NULL then.
        """
        return ", ".join(
            instead.get(name, name) if name in self._columns[kind] else f"NULL AS {name}"
            for name in COLUMNS[kind]
        )

    def _require_columns(self, kind: Kind) -> None:
        """Refuse a target whose table lacks a column; raises StoreError."""
        missing = [name for name in COLUMNS[kind] if name not in self._columns[kind]]
        if missing:
            raise StoreError(
                expected=f"the table {self._names[kind]} with all columns of Celery 5.7",
                found=f"no {', '.join(missing)}",
                do="run site.yml for this backend, or `python3 -m schema upgrade` on the server",
            )

    def _refused_ids(self, kind: Kind) -> StoreError:
        """Say that the sequence gives ids that are in use."""
        return StoreError(
            expected=f"{self._sequences[kind]} to go on after the highest id of {self._names[kind]}",
            found="an id that is in use",
            do="run site.yml for this backend, or `python3 -m schema upgrade` on the server, then this again",
        )
