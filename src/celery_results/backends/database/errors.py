"""What a database can answer that no retry will put right; all are `CeleryResultsError`, none holds a secret.

DatabaseBackendError
├── MissingSchemaError     no such table, column, sequence or file: this backend creates none
├── ReadOnlyServerError    the server takes no writes: a standby, or default_transaction_read_only
└── PickledResultError     the row holds a pickle, which runs code where it is read
"""

from __future__ import annotations

from enum import Enum, auto

from celery_results.errors import CeleryResultsError


class Fault(Enum):
    """What an error of a driver means for the one who asked."""

    LOST = auto()  # the connection is gone or could not be made
    BUSY = auto()  # lock, deadlock, timeout, too many connections: the same statement may succeed later
    READ_ONLY = auto()
    MISSING = auto()
    REFUSED = auto()  # data, rights, syntax: it would fail again
    FOREIGN = auto()  # not the driver's: the connection may be in the middle of an answer


class DatabaseBackendError(CeleryResultsError):
    """The root of this backend's own errors."""


class MissingSchemaError(DatabaseBackendError):
    """A table, column, sequence or file is missing."""


class ReadOnlyServerError(DatabaseBackendError):
    """The server refuses every write."""


class PickledResultError(DatabaseBackendError):
    """A stored row begins as a pickle does and is no value of the configured serializer."""


def explained(fault: Fault, error: BaseException) -> DatabaseBackendError | None:
    """Give the error that names the remedy, or None where the driver's own says enough."""
    found = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if fault is Fault.MISSING:
        return MissingSchemaError(
            expected="the tables of Celery results as the bundle makes them",
            found=found,
            do="run site.yml for this backend, or `python3 -m schema upgrade` on the server",
        )
    if fault is Fault.READ_ONLY:
        return ReadOnlyServerError(
            expected="a server that takes writes",
            found=found,
            do="name the primary in result_backend (PostgreSQL: target_session_attrs=read-write), or end its"
            " read-only mode",
        )
    return None
