"""What Redis and Valkey must refuse."""

from __future__ import annotations

import contextlib
import secrets
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from celery_results.smoke.diagnosis import Hint
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.settings import Connection
    from celery_results.smoke.refusals import Attempt

_SECONDS = 5.0
_KEPT_SECONDS = 60  # for what an attack that succeeds has written, should its removal fail
_CHORD_SUFFIXES = (".j", ".t", ".s", ".d", ".c")

HINTS = (
    Hint(
        # The last is what Redis 7.0 says where a script, such as each store of a result, lacks a right.
        r"NOPERM|no permissions|user executing the script can't",
        "the server's ACL denies this login a command, key or channel that Celery needs: compare users.acl "
        "on the server (ACL LOG names what was denied) with the role redis, and run site.yml again",
    ),
    Hint(
        r"WRONGPASS|NOAUTH|invalid username-password|Authentication required",
        "CELERYCONFIG_RESULT_USERNAME and _PASSWORD are not those of the server: run site.yml for the server "
        "and this host with the same vault_redis_*_password or the same .state directory",
    ),
    Hint(
        r"\bOOM\b|maxmemory",
        "the server's memory is full: raise redis_maxmemory, or lower celery_result_expires_seconds",
    ),
    Hint(
        r"MISCONF", "the server cannot write to its disk: free space there; results are refused until it can"
    ),
    Hint(r"READONLY", "CELERYCONFIG_RESULT_HOSTS names a replica: it must name the primary"),
    Hint(r"LOADING|BusyLoading", "the server is still loading its data: run this again in a moment"),
)


@contextlib.contextmanager
def _open(connection: Connection) -> Iterator[redis.Redis]:
    host, port = connection.hosts[0]
    tls: dict[str, Any] = {}
    if connection.tls.enabled:
        tls = {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": connection.tls.ca_file,
            "ssl_certfile": connection.tls.cert_file or None,
            "ssl_keyfile": connection.tls.key_file or None,
        }
    client = redis.Redis(
        host=host,
        port=port,
        db=int(connection.database or 0),
        username=connection.username or None,
        password=connection.password or None,
        socket_timeout=_SECONDS,
        socket_connect_timeout=_SECONDS,
        retry=Retry(NoBackoff(), 0),
        **tls,
    )
    try:
        yield client
    finally:
        client.close()


def _show_that_it_answers(login: Connection) -> None:
    with _open(login) as client:
        client.ping()


def _says_plain(address: tuple[str, int]) -> bool:
    """Tell whether Redis's protocol is spoken there without TLS: any answer in it counts, also a refusal."""
    with socket.create_connection(address, timeout=_SECONDS) as plain:
        try:
            plain.sendall(b"PING\r\n")
            answer = plain.recv(64)
        except (ConnectionError, TimeoutError):
            return False
    return answer[:1] in {b"+", b"-", b"$", b"*"}


def plain_text(target: Target) -> str:
    """Speak to the server without TLS."""
    _show_that_it_answers(target.login)
    addresses = list(target.login.hosts)
    if target.monitor:
        # The server's own word: with a plain port open, INFO tells that one; otherwise the port of TLS.
        with _open(target.monitor) as client:
            addresses.append((target.monitor.hosts[0][0], int(client.info("server")["tcp_port"])))
    addresses = list(dict.fromkeys(addresses))
    for host, port in addresses:
        if _says_plain((host, port)):
            raise Accepted(f"{host} port {port} answers without TLS")
    ports = ", ".join(str(port) for _, port in addresses)
    return f"port {ports}: no answer without TLS" + ("" if target.monitor else "; other ports not known here")


def wrong_password(target: Target) -> str:
    """Log in with the right name and another password."""
    _show_that_it_answers(target.login)
    try:
        _show_that_it_answers(replace(target.login, password=secrets.token_hex(20)))
    except AuthenticationError:
        return f"{target.login.username or 'default'}: refused"
    raise Accepted("the server takes any password for this login")


def no_password(target: Target) -> str:
    """Come without a login, and as the user that a fresh server lets in."""
    _show_that_it_answers(target.login)
    for login in (
        replace(target.login, username="", password=""),
        replace(target.login, username="default", password=""),
    ):
        with contextlib.suppress(AuthenticationError):
            try:
                _show_that_it_answers(login)
            except NoPermissionError:
                raise Accepted("the default user is on, though it may do little") from None
            raise Accepted("the server answers without a password: its default user is on")
    return "no login, and the default user: refused"


def foreign_key(target: Target) -> str:
    """Write and read outside of Celery's keys, list all keys, read the server's configuration."""
    key = f"celery-results-smoke-foreign-{secrets.token_hex(8)}"
    commands: dict[str, tuple[Any, ...]] = {
        "write a foreign key": ("SET", key, "1", "EX", _KEPT_SECONDS),
        "read a foreign key": ("GET", key),
        "list keys": ("SCAN", 0, "COUNT", 1),
        "read the configuration": ("CONFIG", "GET", "port"),
    }
    allowed = _allowed(target.login, commands, key)
    if allowed:
        raise Accepted(f"{target.login.username or 'default'} may {', '.join(allowed)}")
    return f"{target.login.username}: {len(commands)} ways, all refused"


def broker_foreign_key(target: Target) -> str:
    """Have the broker's login read and forge results, list all keys, administer the server."""
    commands: dict[str, tuple[Any, ...]] = {
        "read a result": ("GET", target.result_key),
        "forge a result": ("SET", target.result_key, "forged", "EX", _KEPT_SECONDS, "NX"),
        "announce a result": ("PUBLISH", f"{target.result_key}-foreign", "forged"),
        "list keys": ("SCAN", 0, "COUNT", 1),
        "read the configuration": ("CONFIG", "GET", "port"),
    }
    allowed = _allowed(target.login, commands, target.result_key)
    if allowed:
        raise Accepted(f"{target.login.username or 'default'} may {', '.join(allowed)}")
    return f"{target.login.username}: {len(commands)} ways, all refused"


def client_write(target: Target) -> str:
    """Have the client's login overwrite a result, and announce a forged one."""
    if target.client is None:
        raise NotRun("this host has no client login (client.env)")
    commands: dict[str, tuple[Any, ...]] = {
        "overwrite a result": ("SET", target.result_key, "forged", "EX", _KEPT_SECONDS),
        "announce a forged result": ("PUBLISH", target.result_key, "forged"),
    }
    allowed = _allowed(target.client, commands, target.result_key)
    if allowed:
        raise Accepted(f"{target.client.username or 'default'} may {', '.join(allowed)}")
    return f"{target.client.username}: neither write nor announcement"


def _allowed(login: Connection, commands: Mapping[str, tuple[Any, ...]], key: str) -> list[str]:
    allowed = []
    with _open(login) as client:
        client.ping()
        for what, command in commands.items():
            with contextlib.suppress(NoPermissionError):
                client.execute_command(*command)  # type: ignore[no-untyped-call]
                allowed.append(what)
        if allowed:
            with contextlib.suppress(NoPermissionError):
                client.delete(key)
    return allowed


def forget_chord(backend: Any, group_id: str) -> None:  # noqa: ANN401 - Celery has no types
    """Remove the counters, and the claim that Celery keeps for five minutes after the body was sent."""
    backend.client.delete(*(backend.get_key_for_group(group_id, suffix) for suffix in _CHORD_SUFFIXES))


NOT_OFFERED: Mapping[str, str] = {}

ATTEMPTS: Mapping[str, Attempt] = {
    "plain_text": plain_text,
    "wrong_password": wrong_password,
    "no_password": no_password,
    "foreign_key": foreign_key,
    "client_write": client_write,
}
BROKER_ATTEMPTS: Mapping[str, Attempt] = {
    "plain_text": plain_text,
    "wrong_password": wrong_password,
    "no_password": no_password,
    "foreign_key": broker_foreign_key,
}
