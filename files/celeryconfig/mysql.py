"""MariaDB or MySQL as the result store: deployed as celeryconfig_mysql.py.

base.py calls one function, with the description of the server.
"""

from types import SimpleNamespace as _Namespace
from typing import Any as _Any
from urllib.parse import quote as _quote
from urllib.parse import urlencode as _urlencode

# For Celery's own class: a server that is gone must be noticed, and PyMySQL waits for ever. But its nightly
# cleanup is one statement, which our server ends after 900 s. The bundled class waits for 60 s.
_STOCK_TIMEOUTS_SECONDS = {"connect_timeout": 5, "read_timeout": 930, "write_timeout": 930}


def _url(server: _Namespace, query: dict[str, str]) -> str:
    """Any character may occur in a password, so it enters the URL percent-encoded."""
    username, password = _quote(server.username, safe=""), _quote(server.password, safe="")
    arguments = f"?{_urlencode(query, quote_via=_quote)}" if query else ""
    return f"mysql+pymysql://{username}:{password}@{server.hosts[0]}/{server.database}{arguments}"


def _tls(server: _Namespace) -> dict[str, str]:
    """Name the files of TLS as PyMySQL does; with mTLS also show a certificate."""
    files = {"ssl_ca": server.tls_ca_file}
    if server.tls_cert_file:
        files |= {"ssl_cert": server.tls_cert_file, "ssl_key": server.tls_key_file}
    return files if server.tls_enabled else {}


def result_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that store and read results."""
    options: dict[str, _Any] = {
        # Under MySQL's default, REPEATABLE READ, the nightly cleanup locks the gaps that new results go into.
        "isolation_level": "READ COMMITTED",
        # The server closes what was idle for twice as long; what a restart closed is noticed before its use.
        "pool_recycle": server.options.get("pool_recycle_seconds", 1800),
        "pool_pre_ping": True,
    }
    tls = _tls(server)
    if server.implementation == "stock":
        # By itself PyMySQL verifies nothing. Not in the URL: SQLAlchemy gives one half of what is there to an
        # old argument of PyMySQL, the other to its new ones, and these win, without the authority.
        files = {name.removeprefix("ssl_"): value for name, value in tls.items()}
        verified = {**files, "check_hostname": True, "verify_mode": "required"}
        options["connect_args"] = {**_STOCK_TIMEOUTS_SECONDS, **({"ssl": verified} if tls else {})}
        backend = f"db+{_url(server, {})}"
    else:
        tls |= {"ssl_verify_cert": "true", "ssl_verify_identity": "true"} if tls else {}
        backend = f"celery_results.backends.database:DatabaseBackend+{_url(server, tls)}"
    return {
        "result_backend": backend,
        # One dictionary: it replaces Celery's own, and a second one would replace this.
        "database_engine_options": options,
        # The tables are the role's; without this a worker does not even start while the server is away.
        "database_create_tables_at_setup": False,
    }
