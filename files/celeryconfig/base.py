"""The Celery settings of this host: app.config_from_object("celeryconfig"), and nothing else.

All that differs between hosts, secrets included, comes from the environment, that is from celery.env.
Celery takes every public name here for a setting and silently ignores those that it does not know:
whatever is no setting starts with an underscore.
"""

import json as _json
import os as _os
import ssl as _ssl
from collections.abc import Callable as _Callable
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from types import ModuleType as _Module
from types import SimpleNamespace as _Namespace
from typing import Any as _Any

from celery.exceptions import ImproperlyConfigured as _ImproperlyConfigured


def _read(name: str, default: str | None = None, parse: _Callable[[str], _Any] = str) -> _Any:  # noqa: ANN401
    """Read one variable; the message names it and the file, never the value, which may be a secret."""
    value = _os.environ.get(f"CELERYCONFIG_{name}", default)
    try:
        if value is None:
            problem = "is not set"
        else:
            return parse(value)
    except (LookupError, ValueError):
        problem = "has an invalid value"
    raise _ImproperlyConfigured(
        f"CELERYCONFIG_{name} {problem}: load /etc/celery/celery.env first "
        "(systemd: EnvironmentFile=/etc/celery/celery.env, shell: set -a; . /etc/celery/celery.env)"
    )


def _flag(value: str) -> bool:
    return {"true": True, "false": False}[value]


def _implementation(value: str) -> str:
    """Whose class stores results: ours, or Celery's own for the same server."""
    return {"bundled": value, "stock": value}[value]


def _seconds(value: str) -> int:
    """Refuse 0 and None: results kept for ever by one backend, all of them deleted by another."""
    seconds = int(value)
    if seconds <= 0:
        raise ValueError(value)
    return seconds


def _server(role: str) -> _Namespace:
    """Describe the server in one role, RESULT, BROKER or TARGET, as the module of its backend expects it."""
    return _Namespace(
        login=_read("LOGIN"),
        # Results that are messages need a broker of their own kind.
        broker=_os.environ.get("CELERYCONFIG_BROKER_NAME", ""),
        scheme=_read(f"{role}_SCHEME"),
        # host:port, an IPv6 address in brackets: fit for a URL; none where the database is a file.
        hosts=[host for host in _read(f"{role}_HOSTS").split(",") if host],
        implementation=_read("RESULT_IMPLEMENTATION", "bundled", parse=_implementation),
        database=_read(f"{role}_DATABASE", ""),
        username=_read(f"{role}_USERNAME", ""),
        password=_read(f"{role}_PASSWORD", ""),
        tls_enabled=_read(f"{role}_TLS_ENABLED", parse=_flag),
        tls_ca_file=_read(f"{role}_TLS_CA_FILE", ""),
        tls_cert_file=_read(f"{role}_TLS_CERT_FILE", ""),
        tls_key_file=_read(f"{role}_TLS_KEY_FILE", ""),
        options=_read(f"{role}_OPTIONS", "{}", parse=_json.loads),
    )


def _backend(name: str) -> _Module:
    """Import the module of a backend: celeryconfig_<name>.py, beside this file."""
    if not _find_spec(f"celeryconfig_{name}"):
        raise LookupError(name)
    return _import_module(f"celeryconfig_{name}")


def _external_broker(url: str) -> dict[str, _Any]:
    """Verify chain and name: from the URL alone kombu verifies no name, and for rediss nothing at all."""
    ca_file = _read("BROKER_TLS_CA_FILE", "") or None  # None: the authorities that the system trusts
    verified = {
        "amqps": {"cert_reqs": _ssl.CERT_REQUIRED, "ca_certs": ca_file, "server_hostname": None},
        "rediss": {"ssl_cert_reqs": _ssl.CERT_REQUIRED, "ssl_ca_certs": ca_file, "ssl_check_hostname": True},
    }
    # Unconfirmed, a refused task is lost in silence; without a limit, a dead server is waited for for ever.
    amqp = {"confirm_publish": True, "read_timeout": 30, "write_timeout": 30}
    redis = {"socket_connect_timeout": 5.0, "socket_timeout": 30.0, "socket_keepalive": True}
    options = {"amqp": amqp, "amqps": amqp, "pyamqp": amqp, "redis": redis, "rediss": redis}
    scheme = url.partition("://")[0]
    return {
        "broker_url": url,
        **({"broker_use_ssl": verified[scheme]} if scheme in verified else {}),
        **({"broker_transport_options": options[scheme]} if scheme in options else {}),
    }


# Stores and cleanups compare these times; some keep the wall clock of the app's zone.
timezone = "UTC"
enable_utc = True

# JSON cannot run code when it is read. What is read as a result is what is written as one, nothing more.
accept_content = ["json"]
task_serializer = "json"
result_serializer = _read("RESULT_SERIALIZER", "json")
result_accept_content = [result_serializer]

result_expires = _read("RESULT_EXPIRES_SECONDS", parse=_seconds)

# True stores the arguments of every task beside its result: only where somebody asked for it.
result_extended = _read("RESULT_EXTENDED", "false", parse=_flag)

# Celery by itself retries only the write of a result, not the reads around it. Its default of retries without
# an end hangs a process on a dead server. The waits grow from 20 ms to 10 s, by chance half of that: a worker
# waits about 2 minutes for a server to come back before a result is lost, whoever asks for one about 15 s.
result_backend_always_retry = True
result_backend_max_retries = 30 if _read("LOGIN") == "worker" else 11

# A host may start before its broker does.
broker_connection_retry_on_startup = True

_results = _read("RESULT_NAME", parse=_backend).result_settings(_server("RESULT"))
# While they move to another store: RESULT is the one that they leave, in all stages.
if "CELERYCONFIG_MIGRATION_STAGE" in _os.environ:
    _results = _backend("dual").result_settings(
        stage=_read("MIGRATION_STAGE"),
        journal=_read("MIGRATION_JOURNAL"),
        old=_results,
        new=_read("TARGET_NAME", parse=_backend).result_settings(_server("TARGET")),
    )
globals().update(_results)

# Without a broker there is no broker_url: this host reads results, it neither sends nor runs tasks.
if "CELERYCONFIG_BROKER_NAME" in _os.environ:
    globals().update(_read("BROKER_NAME", parse=_backend).broker_settings(_server("BROKER")))
elif "CELERYCONFIG_BROKER_URL" in _os.environ:
    globals().update(_external_broker(_read("BROKER_URL")))
