"""What Celery would hand to py-amqp: asked of its own connection, which connects to nothing when built."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import amqp
from amqp import spec
from amqp.transport import SSLTransport
from celery import Celery

from celery_results.doctor.certificates import TIMEOUT_SECONDS, Authority

if TYPE_CHECKING:
    from celery_results.doctor.subject import Settings

SCHEMES: Final = frozenset({"amqp", "amqps", "pyamqp"})
# py-amqp takes these as arguments, and raises TypeError for any other.
_WRAP: Final = SSLTransport._wrap_socket_sni  # noqa: SLF001 - it names them nowhere else
_TLS_OPTIONS: Final = frozenset(inspect.signature(_WRAP).parameters) - {"self", "sock"}


class RefusedError(Exception):
    """Celery does not connect with these settings; the message is fit to be printed."""


class BlockedError(Exception):
    """The server has stopped reading from this connection; the message is its reason."""


class Probe(amqp.Connection):  # type: ignore[misc]  # py-amqp has no types
    """py-amqp throws away the reason why a connection is blocked; here it ends the wait for an answer."""

    _METHODS = amqp.Connection._METHODS | {  # noqa: SLF001 - as py-amqp's own classes override it
        spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s"),
    }

    def _on_blocked(self, reason: str = "") -> None:
        raise BlockedError(reason)


@dataclass(frozen=True)
class Parameters:
    """One connection to the broker, as kombu's pyamqp transport makes it."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    vhost: str
    login_method: str
    tls: Mapping[str, Any] | None  # py-amqp's options; None: plain text

    @property
    def where(self) -> str:
        """Name the server in a finding."""
        return f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine."""
        return is_loopback(self.host)

    @property
    def requirement(self) -> ssl.VerifyMode:
        """What py-amqp asks of the server's certificate: the chain, unless it is told otherwise."""
        return ssl.VerifyMode((self._context or self.tls or {}).get("cert_reqs", ssl.CERT_REQUIRED))

    @property
    def checked_name(self) -> str:
        """Give the name that the certificate has to bear; empty if any will do."""
        if self._context is not None:
            return self.host if self._context.get("check_hostname") else ""
        return str((self.tls or {}).get("server_hostname") or "")

    @property
    def authority(self) -> Authority:
        """Name the TLS files."""
        if self._context is not None:
            return Authority(self._context.get("cafile"))
        named = [(self.tls or {}).get(key) for key in ("ca_certs", "certfile", "keyfile")]
        ca_file, cert_file, key_file = (str(path) if path else None for path in named)
        return Authority(ca_file, cert_file, key_file, alone=True)

    @property
    def _context(self) -> Mapping[str, Any] | None:
        context = (self.tls or {}).get("context")
        return context if isinstance(context, Mapping) else None

    @contextmanager
    def connection(self, **changes: str) -> Iterator[Probe]:
        """Connect and log in; raises OSError, amqp.AMQPError or, from within, BlockedError."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        values: dict[str, Any] = {
            "host": f"{host}:{self.port}",
            "userid": self.username,
            "password": self.password,
            "virtual_host": self.vhost,
            "login_method": self.login_method,
            "ssl": dict(self.tls) if self.tls is not None else False,
            "connect_timeout": TIMEOUT_SECONDS,
            "read_timeout": TIMEOUT_SECONDS,
            "write_timeout": TIMEOUT_SECONDS,
            "client_properties": {"connection_name": "celery-results doctor"},
        }
        connection = Probe(**(values | changes))
        try:
            connection.connect()
            yield connection
        except BlockedError:
            # The server reads no goodbye, neither AMQP's nor that of TLS, for which py-amqp would wait.
            connection.sock.settimeout(0)
            connection.collect()
            raise
        except (OSError, amqp.ConnectionError):
            connection.collect()
            raise
        finally:
            with suppress(OSError, amqp.AMQPError, BlockedError):
                connection.close()


def read_parameters(settings: Settings, url: str) -> Parameters:
    """Ask Celery; raises RefusedError where it could not connect with these settings."""
    app = Celery("doctor", set_as_current=False)
    app.conf.update(settings)
    try:
        connection = app.connection_for_write(url=url)
        transport = connection.transport  # amqps:// switches TLS on here
        defaults = transport.default_connection_params
        tls = _tls(connection.ssl, connection.hostname or defaults["hostname"])
        password = connection.password or defaults["password"]
        return Parameters(
            host=str(connection.hostname or defaults["hostname"]),
            port=int(connection.port or defaults["port"]),
            username=str(connection.userid or defaults["userid"]),
            password=str(password() if callable(password) else password),
            vhost=str(connection.virtual_host or "/"),
            login_method=str(connection.login_method or defaults["login_method"]),
            tls=tls,
        )
    except (ValueError, TypeError, AttributeError, KeyError, LookupError, ImportError) as failure:
        # kombu's messages may quote a piece of the URL.
        raise RefusedError(type(failure).__name__) from None


def _tls(value: object, host: str) -> dict[str, Any] | None:
    """Return py-amqp's TLS options, as pyamqp hands them over; raises RefusedError for unknown ones."""
    if not value:
        return None
    if not isinstance(value, Mapping):
        return {}
    options = dict(value)
    unknown = sorted(str(name) for name in set(options) - _TLS_OPTIONS - {"context"})
    if unknown:
        raise RefusedError(f"broker_use_ssl has {', '.join(unknown)}, which py-amqp does not know")
    if not isinstance(options.get("cert_reqs", ssl.CERT_NONE) or ssl.CERT_NONE, int):
        raise RefusedError("cert_reqs of broker_use_ssl is no constant of the module ssl")
    if "server_hostname" in options and options["server_hostname"] is None:
        options["server_hostname"] = "127.0.0.1" if host == "localhost" else host
    if options.get("cert_reqs", ssl.CERT_NONE) is None:
        del options["cert_reqs"]
    return options


def is_loopback(host: str) -> bool:
    """Say whether a host name means this machine without asking a resolver."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
