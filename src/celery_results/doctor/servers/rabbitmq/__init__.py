"""RabbitMQ, as the broker; rpc results, which travel over it, are in the module rpc."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from celery_results.doctor.findings import could_not_check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from celery_results.doctor.findings import Finding
    from celery_results.doctor.subject import Subject

BROKER_SCHEMES: Final = frozenset({"amqp", "amqps", "pyamqp"})


def check_broker_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the broker."""
    yield from _run("options", "check_settings", subject)


def check_broker(subject: Subject) -> Iterator[Finding]:
    """Judge the live broker."""
    yield from _run("live", "check_server", subject)


def _run(module: str, check: str, subject: Subject) -> Iterator[Finding]:
    """Import late: py-amqp comes with kombu, but a user may have removed it."""
    try:
        checks: ModuleType = importlib.import_module(f"{__name__}.{module}")
    except ImportError as failure:
        yield could_not_check(
            f"RabbitMQ ({check})", str(failure), "Run doctor in the environment of the workers."
        )
    else:
        yield from getattr(checks, check)(subject)
