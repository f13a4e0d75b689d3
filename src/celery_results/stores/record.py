"""Results as they travel between two stores: rows of Celery's tables, or documents of its key-value stores.

A row has the columns of `TASK_COLUMNS` or `GROUP_COLUMNS`: text and payloads as bytes, `date_done` as
microseconds since 1970 (UTC), `retries` as int, each None where the table has NULL. A `Document` is one value
as a key-value store keeps it. Which of the two a store has is its `form`.
"""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from celery_results.archive.records import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from celery_results.backends.database.errors import Fault
    from celery_results.stores.copy_rows import Packer

Form = Literal["rows", "documents"]
Kind = Literal["results", "groups"]
KINDS: Final[tuple[Kind, ...]] = ("results", "groups")
Row = tuple[Any, ...]
PackedRow = tuple[bytes, bytes, int | None]  # see copy_rows
Position = dict[str, int]

TASK_COLUMNS: Final = COLUMNS[1:]  # without the row's number
GROUP_COLUMNS: Final = ("taskset_id", "result", "date_done")
# Payloads of the configured serializer; every other column but date_done and retries is text.
PAYLOADS: Final = ("result", "children", "args", "kwargs", "stamps")
TASK_DATE: Final = TASK_COLUMNS.index("date_done")
GROUP_DATE: Final = GROUP_COLUMNS.index("date_done")
NO_DATE: Final = 2**63 - 1  # what is no date in Python: infinity, years BC or of five digits, the day 0
NO_RESULT: Final = b"celery-results-probe"
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - as the tables have it: UTC without a zone
_DAY: Final = 86_400_000_000


class Document(NamedTuple):
    """One value, under its id without the prefix; `deadline` is when it expires, ms since 1970, or None."""

    id: bytes
    value: bytes
    deadline: int | None


# Takes the three as one tuple, without the call of a Python function that a named tuple's own constructor is.
DOCUMENT: Final[Callable[[tuple[bytes, bytes, int | None]], Document]] = partial(tuple.__new__, Document)


class Failure(NamedTuple):
    """What could not be copied, and why; never a payload."""

    kind: Kind
    id: str
    reason: str


@dataclass(frozen=True)
class Shape:
    """How one side keeps results; `expires` is its result_expires in seconds, None for never."""

    form: Form
    serializer: str = "json"
    expires: float | None = 86_400.0
    keeps_microseconds: bool = True


@dataclass
class Batch:
    """What was read together. `position` is where to go on once all of it is durably stored."""

    position: Position
    fraction: float  # of the source that is read with this batch, 0 to 1
    results: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)
    expired: dict[Kind, int] = field(default_factory=dict)  # gone between being named and being read
    failures: list[Failure] = field(default_factory=list)
    size: int = 0

    def of(self, kind: Kind) -> list[Any]:
        """Give the records of a kind."""
        return self.results if kind == "results" else self.groups


@dataclass
class Written:
    """What became of records that a target was given."""

    copied: int = 0
    present: int = 0
    expired: int = 0
    failures: list[Failure] = field(default_factory=list)


class Store(Protocol):
    """What source and target have in common."""

    form: Form

    def connect(self) -> None:
        """Open, or open anew, what the store needs; raises the driver's error."""

    def identity(self) -> str:
        """Name this life of the server, or "" if it may not be known: see `Source` and `Target`."""

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""

    def ping(self) -> None:
        """Read one result that is not there, as a client does: what that takes is what others feel."""

    def close(self) -> None:
        """Let go of the connection."""


class Source(Store, Protocol):
    """A store that is read; a position holds within one identity."""

    def batches(self, position: Position | None, rows: int, size: int) -> Iterator[Batch]:
        """Give everything from a position on, in batches of about so many records or bytes."""


class Target(Store, Protocol):
    """A store that is filled; what was written may be gone under another identity."""

    packer: Packer | None  # where `write` takes packed results too
    rows: int  # records that are best written together

    def write(self, kind: Kind, records: Sequence[Any]) -> Written:
        """Store what is absent, durably; what is there stays. Repeating it does no harm."""


def now_ms() -> int:
    """Give the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def microseconds(moment: dt.datetime) -> int:
    """Count from 1970; a naive time is UTC."""
    passed = moment - (_EPOCH if moment.tzinfo else _NAIVE_EPOCH)
    return passed.days * _DAY + passed.seconds * 1_000_000 + passed.microseconds


def date_of(value: object) -> int | None:
    """Count a stored date as `microseconds` does, NO_DATE for what a lenient database has taken for one."""
    if value is None:
        return None
    return microseconds(value) if isinstance(value, dt.datetime) else NO_DATE


def moment(count: int) -> dt.datetime:
    """Give the naive UTC time of a count of microseconds."""
    return _NAIVE_EPOCH + dt.timedelta(microseconds=count)


def text(identifier: object) -> str:
    """Give an id for a message."""
    return identifier.decode(errors="replace") if isinstance(identifier, bytes) else str(identifier)
