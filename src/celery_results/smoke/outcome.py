"""What a check says: it held, it failed, it could not be run here, or the backend does not offer it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The four answers; only `failed` makes the exit code 1."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not_run"
    NOT_OFFERED = "not_offered"


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    name: str
    status: Status
    milliseconds: int
    note: str = ""
    remedy: str = ""


class CheckFailed(Exception):  # noqa: N818 - an answer, not an accident
    """The check ran, and what it proves does not hold."""

    def __init__(self, note: str, remedy: str = "") -> None:
        """Say what was seen; the remedy, where it is better than the check's own."""
        super().__init__(note)
        self.note = note
        self.remedy = remedy


class NotRun(Exception):  # noqa: N818 - an answer, not an accident
    """The check makes no sense here; the message says why."""


class OutOfTime(BaseException):
    """A part of the run took too long. No Exception: no check and no library may swallow it."""
