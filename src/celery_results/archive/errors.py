"""What keeps an archive from being written or read; nothing is deleted from the database then."""

from __future__ import annotations

from celery_results.errors import CeleryResultsError, ConfigurationError


class ArchiveError(CeleryResultsError):
    """The directory, a chunk or the manifest is not as it must be."""


class ArchiveUsageError(ConfigurationError):
    """The directory holds another archive, or the format needs what is not installed."""
