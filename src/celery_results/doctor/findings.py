"""A finding, and the register in which every code is defined exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """How much a finding matters; the gravest first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    def reaches(self, threshold: Severity) -> bool:
        """Say whether this is at or above a threshold."""
        ranks = list(Severity)
        return ranks.index(self) <= ranks.index(threshold)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do."""

    code: str
    severity: Severity
    title: str
    found: str
    remedy: str

    @property
    def docs(self) -> str:
        """Name the place in the documentation."""
        return f"docs/doctor.md#{self.code.lower()}"


@dataclass(frozen=True)
class Kind:
    """One code: what all its findings have in common."""

    code: str
    severity: Severity
    title: str
    remedy: str

    def finding(self, found: str, remedy: str = "") -> Finding:
        """Say where this was found; a remedy of its own replaces the general one."""
        return Finding(self.code, self.severity, self.title, found, remedy or self.remedy)


REGISTER: Final[dict[str, Kind]] = {}


def define(code: str, severity: Severity, title: str, remedy: str) -> Kind:
    """Put a code into the register; a second definition is a mistake of ours."""
    if code in REGISTER:
        raise ValueError(f"{code} is defined twice: {REGISTER[code].title!r} and {title!r}")
    REGISTER[code] = Kind(code, severity, title, remedy)
    return REGISTER[code]


def error(code: str, title: str, remedy: str) -> Kind:
    """Define a fault: results are lost, exposed, or not stored at all."""
    return define(code, Severity.ERROR, title, remedy)


def warning(code: str, title: str, remedy: str) -> Kind:
    """Define a risk: it works, until something happens."""
    return define(code, Severity.WARNING, title, remedy)


def info(code: str, title: str, remedy: str) -> Kind:
    """Define something worth knowing."""
    return define(code, Severity.INFO, title, remedy)


# A check that was not made must never look like a check that passed.
NOT_CHECKED = info(
    "CRB001",
    "Could not check",
    "Give doctor what it lacks and run it again.",
)
SERVER_NOT_CHECKED = info(
    "CRB002",
    "The live server was not checked",
    "doctor looks at live servers of some backends only; check this one with its own tools.",
)
UNREACHABLE = error(
    "CRB003",
    "The server cannot be reached",
    "Check that the server runs, that address and port in the settings are right, and that no firewall drops "
    "connections from this host.",
)
LOGIN_REFUSED = error(
    "CRB004",
    "The server refuses the login of the settings",
    "Compare user name and password with the server's; after a change run site.yml again, then restart "
    "the workers.",
)
MONITOR_REFUSED = warning(
    "CRB005",
    "The server refuses the monitor login",
    "Run site.yml again, which writes monitor.env and the server's users from the same secrets.",
)


def could_not_check(what: str, why: str, remedy: str = "") -> Finding:
    """Say which check was not made, and why."""
    return NOT_CHECKED.finding(f"could not check {what}: {why}", remedy)
