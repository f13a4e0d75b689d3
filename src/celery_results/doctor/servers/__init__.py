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


def for_alias(alias: str) -> ServerChecks | None:
    """Find the module that knows this backend."""
    return next((checks for checks in every() if alias in checks.ALIASES), None)
