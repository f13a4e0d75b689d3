"""A database and its two tables, for commands that work on many rows beside the backend."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_results.backends.database.dialect import Driver, Tables, driver_for
from celery_results.backends.database.url import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.backends.database.dialect import Session


@dataclass(frozen=True)
class Storage:
    """Where results are, and how to get a connection of one's own (not the pool's)."""

    driver: Driver
    tables: Tables

    @classmethod
    def at(
        cls,
        url: str,
        names: Mapping[str, str] | None = None,
        schemas: Mapping[str, str] | None = None,
        connect_arguments: Mapping[str, Any] | None = None,
    ) -> Storage:
        """Take an SQLAlchemy URL and Celery's database_table_names and database_table_schemas.

        Raises `ImproperlyConfigured` for a URL that cannot be used; nothing is connected yet.
        """
        return cls(driver_for(parse(url), connect_arguments), Tables.of_settings(names, schemas))

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Open a connection in autocommit and close it at the end; raises the driver's error."""
        session = self.driver.connect()
        try:
            yield session
        finally:
            with contextlib.suppress(Exception):
                session.close()
