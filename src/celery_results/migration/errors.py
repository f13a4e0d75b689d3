"""What ends a copy before its end; what is stored by then stays, and the next run goes on."""

from __future__ import annotations

from celery_results.errors import CeleryResultsError, ConfigurationError


class CopyError(CeleryResultsError):
    """A store did not come back in time, or refuses what a copy needs."""


class CheckpointError(ConfigurationError):
    """The checkpoint belongs to another copy, is damaged, in use, or cannot be written."""
