"""SQLite, as the result store of one host: deployed as celeryconfig_sqlite.py.

base.py calls the function with the description of the database: a path, and no server.
"""

import sqlite3 as _sqlite3
from functools import partial as _partial
from types import SimpleNamespace as _Namespace
from typing import Any as _Any


def _open(*arguments: _Any, synchronous: str, **options: _Any) -> _sqlite3.Connection:  # noqa: ANN401
    """Open the database. The file keeps the journal mode, but `synchronous` belongs to each connection."""
    connection = _sqlite3.Connection(*arguments, **options)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def _connect_arguments(server: _Namespace) -> dict[str, _Any]:
    """One writes at a time: who finds another one writing waits that long, before Celery's own retries."""
    # NORMAL must have been asked for: with the machine, it loses what was acknowledged last.
    synchronous = {"full": "FULL", "normal": "NORMAL"}[server.options.get("synchronous", "full")]
    # The bundled class sets it itself; Celery's opens what Python's own module calls a factory.
    stock = {"factory": _partial(_open, synchronous=synchronous)}
    durability = stock if server.implementation == "stock" else {"synchronous": synchronous}
    return {"timeout": float(server.options.get("busy_timeout_seconds", 30)), **durability}


def result_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that store and read results."""
    backend = {"bundled": "celery_results.backends.database:DatabaseBackend", "stock": "db"}
    return {
        # Four slashes: an absolute path, so that the process's working directory does not matter.
        "result_backend": f"{backend[server.implementation]}+sqlite:///{server.database}",
        # One dictionary replaces Celery's defaults, which are against servers that close idle connections.
        "database_engine_options": {"connect_args": _connect_arguments(server)},
        # Owned and made by the migrations of the role: no worker makes them while it starts.
        "database_create_tables_at_setup": False,
    }
