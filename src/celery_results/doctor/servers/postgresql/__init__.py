"""PostgreSQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from celery_results.doctor.findings import could_not_check, info
from celery_results.doctor.servers import database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from celery_results.doctor.findings import Finding
    from celery_results.doctor.subject import Subject

ALIASES: Final = database.ALIASES
DIALECTS: Final = frozenset({"postgresql", "postgres"})

STOCK = info(
    "CRB520",
    "Celery's own database class",
    "Set celery_result_backend_implementation: bundled, unless something needs Celery's class: it unpickles "
    "rows that start with 0x80 whatever is accepted, never removes results of unfinished tasks, and opens a "
    "connection for each operation outside of prefork children.",
)


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings: what holds for every database, and which class is used."""
    yield from database.check_settings(subject)
    if subject.alias in database.STOCK_ALIASES:
        yield STOCK.finding(f"result_backend starts with {subject.alias}+")


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server; imported late: a host with another backend has no psycopg."""
    try:
        importlib.import_module("psycopg")
        live: ModuleType = importlib.import_module(f"{__name__}.live")
    except ImportError as failure:
        yield could_not_check(
            "the live server",
            str(failure),
            "Run doctor where requirements/celery-postgresql.txt is installed; psycopg 3 is in it.",
        )
    else:
        yield from live.check_server(subject)
