"""What all dialects share: the names, the columns, and what one step is.

The names are those of Celery 5.7 (celery/backends/database/models.py): a stock client finds everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

VERSION_TABLE = "celery_results_schema_version"
LOCK_NAME = "celery_results_schema"


@dataclass(frozen=True)
class Table:
    """One of Celery's two tables: its columns by kind, in the order in which Celery makes them."""

    name: str
    sequence: str
    key: str  # the unique column by which Celery asks
    columns: dict[str, str]
    # Later releases of Celery added these: an older table may lack them.
    optional: frozenset[str] = frozenset()

    @property
    def date_index(self) -> str:
        """Give the name of the index on date_done that Celery 5.7 makes."""
        return f"ix_{self.name}_date_done"


TASKS = Table(
    name="celery_taskmeta",
    sequence="task_id_sequence",
    key="task_id",
    columns={
        "id": "id",
        "task_id": "key",
        "status": "status",
        "result": "bytes",
        "date_done": "time",
        "traceback": "text",
        "children": "bytes",
        "name": "string",
        "args": "bytes",
        "kwargs": "bytes",
        "worker": "string",
        "retries": "integer",
        "queue": "string",
        "stamps": "bytes",
    },
    optional=frozenset({"children", "name", "args", "kwargs", "worker", "retries", "queue", "stamps"}),
)
GROUPS = Table(
    name="celery_tasksetmeta",
    sequence="taskset_id_sequence",
    key="taskset_id",
    columns={"id": "id", "taskset_id": "key", "result": "bytes", "date_done": "time"},
)
TABLES = (TASKS, GROUPS)


@dataclass(frozen=True)
class Step:
    """One change: what it does in words, and its statements, which hold together or not at all."""

    text: str
    statements: tuple[str, ...]
    as_login: bool = False  # PostgreSQL: before SET ROLE, by the login itself
    windows: str = ""  # PostgreSQL: this table's ids fill {low} and {high}, each window a transaction
    alone: bool = False  # PostgreSQL: CONCURRENTLY, so in no transaction and with no limit on its waits


class Dialect(Protocol):
    """What each server does in its own way."""

    def prepare(self) -> None:
        """Set up the session; raises SchemaError where the login may not do what is needed."""

    def locked(self, wait_seconds: float) -> AbstractContextManager[None]:
        """Let one upgrade run at a time."""

    def existing(self) -> frozenset[str]:
        """Name those of our tables, the version table included, that are there."""

    def plan(self) -> list[Step]:
        """Compare what is there with what should be; change nothing."""

    def execute(self, step: Step) -> None:
        """Make one change."""
