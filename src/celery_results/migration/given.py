"""What a repair is told to look at: ids one a line, or the JSON report of ``celery-results verify``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery_results.backends.dual.points import lists_of
from celery_results.errors import ConfigurationError
from celery_results.migration.journal import GROUP, TASK

if TYPE_CHECKING:
    from collections.abc import Mapping

EXPIRY: Final = "expiry"
# Verdicts of `verify` that a repair can do something about; what moved may have come to rest since.
_VERDICTS: Final = ("missing", "extra", "different", "moving")
_OPERATIONS: Final = {"result": TASK, "group": GROUP}
# What two results that are equal to a client may differ in.
_DETAILS: Final = frozenset({"name", "args", "kwargs", "worker", "retries", "queue", "group_id", "parent_id"})


class GivenError(ConfigurationError):
    """What should name the ids does not."""


@dataclass(frozen=True)
class Found:
    """One result (`journal.TASK`) or saved group (`journal.GROUP`), and the fields said to differ."""

    operation: str
    id: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What is to be repaired. A report names no more than so many differences: `unnamed` counts the others.

    `began` is when the comparison began, seconds since 1970; None for a list of ids. `differences` counts
    everything that it found.
    """

    found: tuple[Found, ...] = ()
    unnamed: int = 0
    began: float | None = None
    differences: int = 0


def read(text: str) -> Given:
    """Understand a list or a report; raises GivenError."""
    if not text.lstrip().startswith("{"):
        ids = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
        return Given(tuple(Found(TASK, name) for name in ids))
    try:
        report = json.loads(text)
        counts = sum(int(report[verdict]) for verdict in _VERDICTS)
        found = dict.fromkeys(
            Found(_OPERATIONS[finding["kind"]], str(finding["id"]), tuple(map(str, finding["fields"])))
            for finding in report["findings"]
            if finding["verdict"] in _VERDICTS
        )
        return Given(tuple(found), max(0, counts - len(found)), float(report["began"]), counts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GivenError(
            expected="ids, one a line, or what `celery-results verify --json` prints",
            found=f"a JSON document without what such a report has ({type(error).__name__})",
            do="give the whole report",
        ) from None


def differs_in(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether two metas differ in a detail that `repair.equal` does not look at."""
    if name == "stamps":
        return _stamps(one) != _stamps(other)
    return name in _DETAILS and lists_of(one.get(name)) != lists_of(other.get(name))


def _stamps(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    headers = meta.get("stamped_headers")
    return {name: lists_of(meta.get(name)) for name in headers} if headers else None
