"""What the three databases differ in: the driver, its errors and a dozen statements."""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_results.backends.database.errors import Fault
    from celery_results.backends.database.url import Address

# Celery 5.7, celery/backends/database/models.py. `stamps` is kept where a later state brings none.
CORE_COLUMNS: Final = ("status", "result", "date_done", "traceback", "children")
READ_COLUMNS: Final = ("task_id", "status", "result", "traceback", "date_done", "children")
EXTENDED_COLUMNS: Final = ("name", "args", "kwargs", "worker", "retries", "queue", "stamps")
READY_STATES: Final = ("SUCCESS", "FAILURE", "REVOKED")
# Who waits on PostgreSQL holds these advisory locks shared (see waiting.py). Several, so that two stores
# seldom meet in one.
LOCK_SPACE: Final = zlib.crc32(b"celery-results") & 0x7FFFFFFF
LOCKS: Final = 16
TASK_SEQUENCE: Final = "task_id_sequence"
GROUP_SEQUENCE: Final = "taskset_id_sequence"


@dataclass(frozen=True)
class Tables:
    """Names as in database_table_names and database_table_schemas; the sequences follow the schema only."""

    task: str = "celery_taskmeta"
    group: str = "celery_tasksetmeta"
    task_schema: str | None = None
    group_schema: str | None = None

    @classmethod
    def of_settings(
        cls, names: Mapping[str, str] | None = None, schemas: Mapping[str, str] | None = None
    ) -> Tables:
        """Read the two settings of Celery; what they leave out is Celery's default."""
        names, schemas = names or {}, schemas or {}
        return cls(
            names.get("task") or cls.task,
            names.get("group") or cls.group,
            schemas.get("task"),
            schemas.get("group"),
        )


@dataclass(frozen=True)
class Statements:
    """SQL with the driver's placeholders, for one pair of tables.

    `store` takes task_id and the columns; where the database can tell, it returns one row whose first
    value is false if nobody waits. `select_many`, `count_ready` take `ids(...)` as their one parameter.
    """

    store: str
    store_extended: str
    select: str
    select_extended: str
    select_many: str
    select_many_extended: str
    count_ready: str
    exists: str
    forget: str
    save_group: str
    select_group: str
    delete_group: str


class Session(Protocol):
    """One connection in autocommit: each statement is a transaction."""

    changed: int  # rows that the last statement changed

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and give its rows; raises the driver's errors."""

    def stale(self) -> bool:
        """Tell without a round trip whether the server has hung up."""

    def close(self) -> None:
        """End the connection in order."""

    def abandon(self) -> None:
        """Let go of a connection of the parent process without a word to the server."""


class Driver(Protocol):
    """One database, from connection to error."""

    name: str
    address: Address

    def connect(self) -> Session:
        """Open a connection; raises the driver's error."""

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""

    def statements(self, tables: Tables) -> Statements:
        """Give the SQL."""

    def ids(self, task_ids: Sequence[str]) -> object:
        """Give several ids as the one parameter that `select_many` takes."""

    def moment(self, value: Any) -> Any:  # noqa: ANN401 # datetime to what the driver takes, and back
        """Turn a naive UTC datetime into a parameter, and a stored value into a naive datetime."""


def driver_for(address: Address, connect_arguments: Mapping[str, Any] | None = None) -> Driver:
    """Load the one driver that is needed; raises ImportError where it is not installed."""
    module = importlib.import_module(f"celery_results.backends.database.{address.dialect}")
    driver: Driver = module.open_driver(address, dict(connect_arguments or {}))
    return driver


def columns(*, extended: bool) -> tuple[str, ...]:
    """Give the columns that a store writes, in the order of its parameters."""
    return CORE_COLUMNS + (EXTENDED_COLUMNS if extended else ())


def qualified(schema: str | None, name: str, mark: str = '"') -> str:
    """Quote a table's name, percent signs as the drivers' placeholders want them."""
    parts = [part.replace(mark, mark * 2).replace("%", "%%") for part in (schema, name) if part]
    return ".".join(f"{mark}{part}{mark}" for part in parts)
