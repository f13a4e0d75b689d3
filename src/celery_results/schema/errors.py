"""What can go wrong, with what to do about it.

SchemaError                exit code 1: the server did not answer, or refused a statement
├── UsageError             exit code 2: wrong arguments
├── NewerError             exit code 3: the database is of a later release
└── ForeignTableError      exit code 4: a table of that name that no Celery made
"""

from __future__ import annotations


class SchemaError(Exception):
    """The root: printed as expected, found, do."""

    exit_code = 1

    def __init__(self, *, expected: str, found: str, do: str) -> None:
        """Keep the three parts apart: JSON has them as keys."""
        super().__init__(f"expected {expected}; found {found}; {do}")
        self.expected, self.found, self.do = expected, found, do


class UsageError(SchemaError):
    """The arguments make no sense."""

    exit_code = 2


class NewerError(SchemaError):
    """A later release was here: its layout is unknown, nothing was touched."""

    exit_code = 3


class ForeignTableError(SchemaError):
    """A table of that name that was not made by Celery: nothing was touched."""

    exit_code = 4
