"""Settings of the Redis backend."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kombu.utils.url import url_to_parts

from celery_results.doctor.files import check_certificate_file, check_readable
from celery_results.doctor.findings import Finding, could_not_check, error, info, warning
from celery_results.doctor.servers.redis.parameters import (
    DEFAULT_PORT,
    Parameters,
    RefusedError,
    is_loopback,
    read_parameters,
)

if TYPE_CHECKING:
    from celery_results.doctor.subject import Subject

PLAIN_TEXT = error(
    "CRB201",
    "Results and password cross the network in plain text",
    "Use rediss:// with redis_backend_use_ssl = {'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': ...}.",
)
PLAIN_TEXT_LOCAL = info(
    "CRB202",
    "No TLS, on this machine only",
    "Nothing to do while the server stays on this machine; use rediss:// before it moves.",
)
NOT_VERIFIED = error(
    "CRB203",
    "The server's certificate is not verified",
    "Set ssl_cert_reqs to ssl.CERT_REQUIRED (in a URL: ?ssl_cert_reqs=required) and name the CA in "
    "ssl_ca_certs.",
)
NAME_NOT_VERIFIED = error(
    "CRB204",
    "The name in the server's certificate is not verified",
    "Remove ssl_check_hostname = False: any certificate of that CA passes for the server's; issue one "
    "that carries "
    "the name in the settings.",
)
REFUSED = error(
    "CRB205",
    "Celery refuses these settings",
    "Correct the setting; workers and clients do not start with it.",
)
ANY_AUTHORITY = info(
    "CRB206",
    "Every public authority is trusted",
    "Name your own CA in ssl_ca_certs, or leave it so if the server's certificate is a public one.",
)
NO_PASSWORD = warning(
    "CRB207",
    "The settings hold no password for the server",
    "Give the workers a user of their own with a password (ACL), and switch the default user off.",
)
CONNECT_TIMEOUT = warning(
    "CRB208",
    "Connecting takes as long as answers may",
    "Set redis_socket_connect_timeout = 5: without it a host that drops packets holds a worker for "
    "redis_socket_timeout, 120 seconds by default.",
)
SOCKET_TIMEOUT = warning(
    "CRB209",
    "Waiting for an answer never ends",
    "Set redis_socket_timeout, for example 30: without it a lost connection blocks a worker for ever.",
)
KEEPALIVE = info(
    "CRB210",
    "Dead idle connections are noticed only when used",
    "Set redis_socket_keepalive = True and redis_backend_health_check_interval = 30 where firewalls or load "
    "balancers drop idle connections.",
)
SMALL_POOL = error(
    "CRB211",
    "The connection pool is too small",
    "A client needs two connections, commands and subscription: set redis_max_connections to 2 or more, "
    "or leave it "
    "unset.",
)
LARGE_POOL = info(
    "CRB212",
    "The connection pool is sized for a whole worker",
    "redis_max_connections counts for each process; a worker's child needs one, a client two. More makes "
    "nothing "
    "faster: leave it unset.",
)
NEVER_EXPIRES = warning(
    "CRB213",
    "Results never expire",
    "Set result_expires to at least 1 second: without it keys have no TTL, and with noeviction the server "
    "refuses "
    "writes when its memory is full.",
)
BROKER_TOO = warning(
    "CRB214",
    "Broker and results share one server",
    "They share maxmemory and the eviction policy, for every database number: a full result store stops "
    "the queue. "
    "Give each its own server.",
)
MASTER_NAME = error(
    "CRB215",
    "Sentinel is not told which server is meant",
    "Set result_backend_transport_options = {'master_name': ...}.",
)
COMPRESSION_OFF = warning(
    "CRB216",
    "decode_responses switches the compression off",
    "Remove decode_responses, or result_compression.",
)

_SMALLEST_POOL: Final = 2
# Nobody needs that many for one process; it is the concurrency of a worker, or twice that.
_LARGE_POOL: Final = 10


def check_settings(subject: Subject) -> Iterator[Finding]:
    """Judge the settings of the Redis backend."""
    settings = subject.settings
    yield from _expiry(settings)
    if subject.alias == "sentinel" and not _transport_options(settings).get("master_name"):
        yield MASTER_NAME.finding("result_backend_transport_options has no master_name")
    try:
        parameters = read_parameters(settings, subject.result_backend)
    except RefusedError as refused:
        yield REFUSED.finding(str(refused))
        return
    if parameters.is_tls:
        yield from _tls(parameters)
    elif not parameters.socket_path:
        yield from _plain(subject, parameters)
    if not parameters.has_password and not parameters.socket_path:
        yield NO_PASSWORD.finding("result_backend and redis_password name none")
    yield from _timeouts(parameters)
    yield from _pool(parameters)
    if settings.get("result_compression") and parameters.values.get("decode_responses"):
        yield COMPRESSION_OFF.finding(f"result_compression = {settings['result_compression']!r}")
    yield from _broker(subject, parameters)


def _transport_options(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    options = settings.get("result_backend_transport_options")
    return options if isinstance(options, Mapping) else {}


def _seconds(value: object) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(str(value))


def _expiry(settings: Mapping[str, Any]) -> Iterator[Finding]:
    if "result_expires" in settings:
        value = settings["result_expires"]
        # Celery cuts off the fraction, and takes 0 for never.
        if value is None or int(_seconds(value)) <= 0:
            yield NEVER_EXPIRES.finding(f"result_expires = {value!r}")
    for name in ("result_chord_expires", "result_failure_expires"):
        value = settings.get(name)
        if value is not None and int(_seconds(value)) <= 0:
            yield NEVER_EXPIRES.finding(f"{name} = {value!r}")


def _plain(subject: Subject, parameters: Parameters) -> Iterator[Finding]:
    found = f"{subject.alias}://{parameters.host}:{parameters.port} without TLS"
    if subject.alias == "sentinel":
        yield PLAIN_TEXT.finding("sentinel:// without redis_backend_use_ssl")
    elif parameters.is_local:
        yield PLAIN_TEXT_LOCAL.finding(found)
    else:
        yield PLAIN_TEXT.finding(found)


def _tls(parameters: Parameters) -> Iterator[Finding]:
    requirement = parameters.values["ssl_cert_reqs"]
    if requirement != ssl.CERT_REQUIRED:
        yield NOT_VERIFIED.finding(f"ssl_cert_reqs = {ssl.VerifyMode(requirement).name}")
    elif parameters.values.get("ssl_check_hostname") is False:
        yield NAME_NOT_VERIFIED.finding("ssl_check_hostname = False")
    authority, now = parameters.authority, datetime.now(UTC)
    if authority.ca_file:
        yield from check_certificate_file(Path(authority.ca_file), "ssl_ca_certs", now)
    elif requirement == ssl.CERT_REQUIRED and not {"ssl_ca_data", "ssl_ca_path"} & set(parameters.values):
        yield ANY_AUTHORITY.finding("ssl_ca_certs is not set")
    if authority.cert_file:
        yield from check_certificate_file(Path(authority.cert_file), "ssl_certfile", now)
    if authority.key_file:
        yield from check_readable(Path(authority.key_file), "ssl_keyfile")


def _timeouts(parameters: Parameters) -> Iterator[Finding]:
    values = parameters.values
    if not values.get("socket_timeout"):
        yield SOCKET_TIMEOUT.finding(f"redis_socket_timeout = {values.get('socket_timeout')!r}")
    if parameters.socket_path:
        return
    if not values.get("socket_connect_timeout"):
        yield CONNECT_TIMEOUT.finding("redis_socket_connect_timeout is not set")
    lacking = [
        name
        for name, key in (
            ("redis_socket_keepalive", "socket_keepalive"),
            ("redis_backend_health_check_interval", "health_check_interval"),
        )
        if not values.get(key)
    ]
    if lacking and not parameters.is_local:
        yield KEEPALIVE.finding(f"{' and '.join(lacking)} off")


def _pool(parameters: Parameters) -> Iterator[Finding]:
    size = parameters.values.get("max_connections")
    if size is None:
        return
    if int(size) < _SMALLEST_POOL:
        yield SMALL_POOL.finding(f"redis_max_connections = {size}")
    elif int(size) >= _LARGE_POOL:
        yield LARGE_POOL.finding(f"redis_max_connections = {size}")


def _broker(subject: Subject, parameters: Parameters) -> Iterator[Finding]:
    url = subject.environ.get("CELERY_BROKER_URL") or subject.settings.get("broker_url")
    if not isinstance(url, str) or not url.startswith(("redis://", "rediss://", "valkey://", "valkeys://")):
        return
    try:
        broker = url_to_parts(url)
        address = (broker.hostname or "localhost", broker.port or DEFAULT_PORT)
    except ValueError:
        yield could_not_check("the broker's address", "broker_url cannot be parsed")
        return
    both_local = is_loopback(address[0]) and is_loopback(parameters.host)
    if (
        not parameters.socket_path
        and address[1] == parameters.port
        and (both_local or address[0] == parameters.host)
    ):
        yield BROKER_TOO.finding(f"broker_url and result_backend are both on {address[0]}:{address[1]}")
