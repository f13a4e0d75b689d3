"""PostgreSQL as the result store: deployed as celeryconfig_postgresql.py.

base.py calls one function, with the description of the server.
"""

from types import SimpleNamespace as _Namespace
from typing import Any as _Any
from urllib.parse import quote as _quote
from urllib.parse import urlencode as _urlencode

_CONNECTION = {
    # A server that is gone must be noticed in seconds, also where a firewall drops packets silently: by
    # default
    # libpq waits for the kernel, which takes minutes for a connection and two hours for an idle one.
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    # A standby refuses every write; by mistake in the settings, it is told from a primary when it is
    # connected to.
    "target_session_attrs": "primary",
    # date_done has no zone of its own: that of the session is stored, and the clean-up compares with UTC.
    "options": "-c timezone=UTC",
    # What pg_stat_activity calls these connections.
    "application_name": "celery",
}


def _tls(server: _Namespace) -> dict[str, str]:
    """Verify chain and name; libpq defaults to verifying nothing. With mTLS also show a certificate."""
    own = {"sslcert": server.tls_cert_file, "sslkey": server.tls_key_file}
    return {
        "sslmode": "verify-full",
        "sslrootcert": server.tls_ca_file,
        **(own if server.tls_cert_file else {}),
    }


def _url(server: _Namespace, driver: str) -> str:
    """Any character may occur in a password, so it enters the URL percent-encoded.

    The driver is always named: postgresql:// alone is psycopg2 in SQLAlchemy 2.0 and psycopg 3 in 2.1.
    """
    username, password = _quote(server.username, safe=""), _quote(server.password, safe="")
    query = _urlencode(_CONNECTION | (_tls(server) if server.tls_enabled else {}), quote_via=_quote)
    return f"postgresql+{driver}://{username}:{password}@{server.hosts[0]}/{server.database}?{query}"


def result_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that store and read results."""
    backend = {
        "bundled": f"celery_results.backends.database:DatabaseBackend+{_url(server, 'psycopg')}",
        # Celery's own class, for what only it can do; docs/postgresql.md says what it lacks.
        "stock": f"db+{_url(server, 'psycopg2')}",
    }
    return {
        "result_backend": backend[server.implementation],
        # One dictionary: it replaces Celery's own, and a second one would replace this. What a restart of the
        # server closed is noticed before it is used.
        "database_engine_options": {"pool_pre_ping": True, "pool_recycle": 3600},
        # The tables are the role's; without this a worker does not even start while the server is away.
        "database_create_tables_at_setup": False,
    }
