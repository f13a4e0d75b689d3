"""Redis and Valkey."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from celery_results.doctor.findings import could_not_check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from celery_results.doctor.findings import Finding
    from celery_results.doctor.subject import Subject

ALIASES: Final = frozenset({"redis", "rediss", "sentinel", "celery_results.backends.redis:RedisBackend"})

BROKER_SCHEMES: Final = frozenset({"redis", "rediss", "sentinel"})


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the Redis backend."""
    yield from _run("options", "check_settings", subject)


def check_server(subject: Subject) -> Iterator[Finding]:
    """Judge the live server."""
    yield from _run("live", "check_server", subject)


def check_broker_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of Redis as the broker."""
    yield from _run("broker", "check_settings", subject)


def check_broker(subject: Subject) -> Iterator[Finding]:
    """Judge the live broker."""
    yield from _run("broker", "check_server", subject)


def _run(module: str, check: str, subject: Subject) -> Iterator[Finding]:
    """Import late: a host with another backend has no redis-py, and need not have it."""
    try:
        importlib.import_module("redis")
        checks: ModuleType = importlib.import_module(f"{__name__}.{module}")
    except ImportError as failure:
        yield could_not_check(
            f"Redis ({check})",
            str(failure),
            "Run doctor in the environment of the workers; Celery needs redis-py for this backend too.",
        )
    else:
        yield from getattr(checks, check)(subject)
