"""MariaDB and MySQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from celery_results.doctor.findings import could_not_check
from celery_results.doctor.servers import database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.findings import Finding
    from celery_results.doctor.subject import Subject

ALIASES: Final = database.ALIASES
DIALECTS: Final = frozenset({"mysql", "mariadb"})


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the database backend."""
    yield from database.check_settings(subject)


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server."""
    # Late: a host with another backend has no PyMySQL, and need not have it.
    try:
        importlib.import_module("pymysql")
        importlib.import_module("sqlalchemy")
        live = importlib.import_module(f"{__name__}.live")
    except ImportError as failure:
        yield could_not_check(
            "the live MariaDB or MySQL server",
            str(failure),
            "Run doctor in the environment of the workers, with PyMySQL and cryptography beside it.",
        )
    else:
        yield from live.check_server(subject)
