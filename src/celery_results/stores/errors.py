"""What keeps a store from being read or filled; all are `CeleryResultsError`."""

from __future__ import annotations

from celery_results.errors import CeleryResultsError, ConfigurationError


class StoreError(CeleryResultsError):
    """The store is not as a copy needs it, and trying again would not help."""


class EndpointError(ConfigurationError):
    """A source or target is named in a way that cannot be used."""
