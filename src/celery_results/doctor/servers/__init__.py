"""What holds for one kind of server: a module here for each, found by looking into this directory.

A module may know a server as the result backend (ServerChecks), as the broker (BrokerChecks), or as both.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_results.doctor.findings import Finding
    from celery_results.doctor.subject import Subject


class ServerChecks(Protocol):
    """The interface of a module in this package; a module's functions need no self."""

    ALIASES: frozenset[str]  # the schemes of result_backend that it knows

    def check_settings(self, subject: Subject) -> Iterator[Finding]:
        """Judge what the settings say."""
        ...

    def check_server(self, subject: Subject) -> Iterator[Finding]:
        """Judge what the server says."""
        ...


class BrokerChecks(Protocol):
    """The interface of a module that knows a broker."""

    BROKER_SCHEMES: frozenset[str]  # the schemes of broker_url that it knows

    def check_broker_settings(self, subject: Subject) -> Iterator[Finding]:
        """Judge what the settings say of the broker."""
        ...

    def check_broker(self, subject: Subject) -> Iterator[Finding]:
        """Judge what the broker says."""
        ...


def every() -> list[ServerChecks | BrokerChecks]:
    """Import every module of this package."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [
        cast("ServerChecks | BrokerChecks", importlib.import_module(f"{__name__}.{name}")) for name in found
    ]


def for_subject(subject: Subject) -> ServerChecks | None:
    """Find the module that knows this backend; one for the database of the URL before one for all of them."""
    results = [cast("ServerChecks", checks) for checks in every() if hasattr(checks, "ALIASES")]
    fitting = [checks for checks in results if subject.alias in checks.ALIASES]
    database = subject.url.partition("://")[0].partition("+")[0]
    # DIALECTS: the databases that a module is for, where several modules share their aliases.
    own = (checks for checks in fitting if database in getattr(checks, "DIALECTS", ()))
    return next(own, next((checks for checks in fitting if not hasattr(checks, "DIALECTS")), None))


def for_broker(subject: Subject) -> BrokerChecks | None:
    """Find the module that knows this broker."""
    brokers = [cast("BrokerChecks", checks) for checks in every() if hasattr(checks, "BROKER_SCHEMES")]
    return next((checks for checks in brokers if subject.broker_scheme in checks.BROKER_SCHEMES), None)
