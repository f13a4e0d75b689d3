"""Redis or Valkey, as the result store and as the broker: deployed as celeryconfig_redis.py.

base.py calls one function or both, each with the description of a server of its own.
"""

import ssl as _ssl
from types import SimpleNamespace as _Namespace
from typing import Any as _Any
from urllib.parse import quote as _quote

# A server that is gone must be noticed in seconds: by default Celery waits 120 s for a connection and for
# every answer, kombu for ever. A healthy server may well pause for seconds while it forks.
_CONNECT_TIMEOUT_SECONDS = 5.0
_ANSWER_TIMEOUT_SECONDS = 30.0


def _url(server: _Namespace) -> str:
    """Any character may occur in a password, so it enters the URL percent-encoded."""
    username, password = _quote(server.username, safe=""), _quote(server.password, safe="")
    credentials = f"{username}:{password}@" if password else ""
    return f"{server.scheme}://{credentials}{server.hosts[0]}/{server.database or 0}"


def _tls(server: _Namespace) -> dict[str, _Any]:
    """Verify chain and name; kombu defaults to verifying nothing. With mTLS also show a certificate."""
    own = {"ssl_certfile": server.tls_cert_file, "ssl_keyfile": server.tls_key_file}
    return {
        "ssl_cert_reqs": _ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": server.tls_ca_file,
        **(own if server.tls_cert_file else {}),
    }


def _key_prefix(server: _Namespace) -> dict[str, _Any]:
    """Set several applications apart on one server, where the ACL grants each its own prefix."""
    prefix = server.options.get("global_keyprefix")
    return {"global_keyprefix": prefix} if prefix else {}


def result_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that store and read results."""
    # Ours never replaces a SUCCESS, and records a failure on a server that is full (docs/redis.md).
    bundled = "" if server.implementation == "stock" else "celery_results.backends.redis:RedisBackend+"
    return {
        "result_backend": f"{bundled}{_url(server)}",
        "redis_backend_use_ssl": _tls(server) if server.tls_enabled else None,
        "redis_socket_connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "redis_socket_timeout": _ANSWER_TIMEOUT_SECONDS,
        # Firewalls forget idle connections silently: the kernel keeps them alive, and one that was idle
        # for longer than the interval answers a PING before it carries a command.
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 30,
        # One reconnection at once, before the slower retries of result_backend_always_retry.
        "redis_retry_on_timeout": True,
        "result_backend_transport_options": _key_prefix(server),
    }


def broker_settings(server: _Namespace) -> dict[str, _Any]:
    """Return the settings that send and receive tasks."""
    return {
        "broker_url": _url(server),
        "broker_use_ssl": _tls(server) if server.tls_enabled else None,
        "broker_transport_options": {
            # No retry_on_timeout: a task whose confirmation is lost would be sent twice.
            "socket_connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "socket_timeout": _ANSWER_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            **_key_prefix(server),
        },
    }
