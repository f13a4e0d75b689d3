"""What Celery would hand to redis-py: asked of Celery's own backend, which connects to nothing when built."""

from __future__ import annotations

import logging
import ssl
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import ImproperlyConfigured
from kombu.utils.url import url_to_parts
from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from celery_results.doctor.certificates import TIMEOUT_SECONDS, Authority
from celery_results.doctor.subject import split_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_PORT: Final = 6379
_CREDENTIALS: Final = ("username", "password", "credential_provider")
_TRANSPORT_OPTIONS: Final = (
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_keepalive_options",
    "health_check_interval",
    "client_name",
)
_TCP_OPTIONS: Final = frozenset({"socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"})
# What Celery says of settings that it refuses; its other messages may quote a piece of the password.
_QUOTABLE: Final = ("SSL connection parameters", "A rediss:// URL must have", "Credential provider is not")


class RefusedError(Exception):
    """Celery does not start with these settings; the message is fit to be printed."""


@dataclass(frozen=True)
class Parameters:
    """One connection, and the keys that Celery uses over it."""

    values: Mapping[str, Any] = field(repr=False)
    task_prefix: bytes
    group_prefix: bytes
    expires: int
    chord_expires: int

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return issubclass(self.values.get("connection_class", Connection), SSLConnection)

    @property
    def socket_path(self) -> str:
        """Name the unix socket, if there is one."""
        return str(self.values.get("path", ""))

    @property
    def host(self) -> str:
        """Name the host."""
        return str(self.values.get("host") or "localhost")

    @property
    def port(self) -> int:
        """Name the port."""
        return int(self.values.get("port") or DEFAULT_PORT)

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine."""
        return bool(self.socket_path) or is_loopback(self.host)

    @property
    def has_password(self) -> bool:
        """Whether a login is configured."""
        return bool(self.values.get("password") or self.values.get("credential_provider"))

    @property
    def authority(self) -> Authority:
        """Name the TLS files."""
        named = [self.values.get(key) for key in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")]
        ca_file, cert_file, key_file = (str(path) if path else None for path in named)
        return Authority(ca_file, cert_file, key_file)

    def client(self) -> Redis:
        """Connect like Celery, but give up at once; and send no CLIENT command, which logins may lack."""
        return Redis(connection_pool=self._pool(self.values))

    def ask_anonymously(self, *command: str | bytes) -> object:
        """Send one command without any login.

        Not through the pool: before it hands out a TLS 1.3 connection on which nothing was said yet, it takes
        the server's session ticket for an answer, and raises.
        """
        values = {key: value for key, value in self.values.items() if key not in _CREDENTIALS}
        connection = self._pool(values).make_connection()
        try:
            connection.connect()  # type: ignore[no-untyped-call]
            connection.send_command(*command)  # type: ignore[no-untyped-call]
            return connection.read_response()
        finally:
            connection.disconnect()  # type: ignore[no-untyped-call]

    def _pool(self, own: Mapping[str, Any]) -> ConnectionPool:
        values = dict(own)
        for key in ("client_name", "driver_info", "lib_name", "lib_version", "retry_on_timeout"):
            values.pop(key, None)
        values |= {
            "driver_info": None,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": TIMEOUT_SECONDS,
            "max_connections": 2,
        }
        if not self.socket_path:
            values["socket_connect_timeout"] = TIMEOUT_SECONDS
        return ConnectionPool(**values)


def read_parameters(settings: Mapping[str, Any], backend: str) -> Parameters:
    """Ask Celery; raises RefusedError where it would not start."""
    alias, url = split_backend(backend)
    kind = SentinelBackend if alias == "sentinel" else RedisBackend
    app = Celery("doctor", set_as_current=False)
    app.conf.update(settings)
    try:
        with _quiet():
            built = kind(app=app, url=url or None)
    except (ValueError, TypeError, AttributeError, ImproperlyConfigured, ImportError) as failure:
        text = " ".join(str(failure).split())
        reason = text if text.startswith(_QUOTABLE) else f"{type(failure).__name__}"
        raise RefusedError(reason) from None
    return Parameters(
        dict(built.connparams),
        built.task_keyprefix,
        built.group_keyprefix,
        int(built.expires or 0),
        int(built.chord_expires or 0),
    )


def read_broker_parameters(settings: Mapping[str, Any], url: str) -> Parameters:
    """Say what kombu would hand to redis-py; raises RefusedError where it could not connect.

    By hand: kombu's own code for this connects.
    """
    app = Celery("doctor", set_as_current=False)
    app.conf.update(settings)
    try:
        connection = app.connection_for_write(url=url)
        given = dict(connection.transport_options or {})
        values = {name: given[name] for name in _TRANSPORT_OPTIONS if given.get(name) is not None}
        login = {"username": connection.userid, "password": connection.password}
        host = str(connection.hostname or "localhost")
        path = connection.virtual_host
        if "://" in host:  # redis+socket://
            socket = url_to_parts(host)
            path = socket.query.get("virtual_host")
            login = {"username": socket.username, "password": socket.password}
            values |= {"connection_class": UnixDomainSocketConnection, "path": f"/{socket.path}"}
            values = {name: value for name, value in values.items() if name not in _TCP_OPTIONS}
        else:
            values |= {"host": host, "port": int(connection.port or DEFAULT_PORT)}
        values |= {"db": int(str(path or "/").strip("/") or 0), **login}
        if connection.ssl:
            # Without options kombu asks for nothing to be verified.
            tls = connection.ssl if isinstance(connection.ssl, Mapping) else {"ssl_cert_reqs": ssl.CERT_NONE}
            values |= {"ssl_cert_reqs": ssl.CERT_REQUIRED} | dict(tls) | {"connection_class": SSLConnection}
            values["ssl_cert_reqs"] = _requirement(values["ssl_cert_reqs"])
    except (ValueError, TypeError, AttributeError, KeyError, ImportError) as failure:
        raise RefusedError(type(failure).__name__) from None
    return Parameters(values, b"celery-task-meta-", b"celery-taskset-meta-", 0, 0)


def _requirement(value: str | int | None) -> ssl.VerifyMode:
    """Read ssl_cert_reqs as redis-py does: a constant or its name; raises ValueError or KeyError."""
    if value is None:
        return ssl.CERT_NONE
    if isinstance(value, str):
        return ssl.VerifyMode[f"CERT_{value.removeprefix('CERT_').upper()}"]
    return ssl.VerifyMode(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Celery's own warnings about TLS would come in between: they are findings here."""
    logger = logging.getLogger("celery.backends.redis")
    was = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was


def is_loopback(host: str) -> bool:
    """Say whether a host name means this machine without asking a resolver."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
