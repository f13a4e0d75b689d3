"""What holds for one kind of backend: a module here for each, found by looking into this directory."""

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


def every() -> list[ServerChecks]:
    """Import every module of this package."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [cast("ServerChecks", importlib.import_module(f"{__name__}.{name}")) for name in found]


def for_subject(subject: Subject) -> ServerChecks | None:
    """Find the module that knows this backend; one for the database of the URL before one for all of them."""
    fitting = [checks for checks in every() if subject.alias in checks.ALIASES]
    database = subject.url.partition("://")[0].partition("+")[0]
    # DIALECTS: the databases that a module is for, where several modules share their aliases.
    own = (checks for checks in fitting if database in getattr(checks, "DIALECTS", ()))
    return next(own, next((checks for checks in fitting if not hasattr(checks, "DIALECTS")), None))
