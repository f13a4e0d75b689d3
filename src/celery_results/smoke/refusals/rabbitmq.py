"""What RabbitMQ must refuse, and what rpc results do not offer."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import amqp
from amqp.exceptions import AccessRefused, AMQPError, NotAllowed, NotFound, PreconditionFailed

from celery_results.smoke.diagnosis import Hint
from celery_results.smoke.outcome import NotRun
from celery_results.smoke.refusals import Accepted, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from celery_results.settings import Connection
    from celery_results.smoke.refusals import Attempt

    Way = Callable[[amqp.Channel], object]

_SECONDS = 5.0
_KEPT_MILLISECONDS = 60_000  # for what an attack that succeeds has made, should its removal fail
_PLAIN_PORT = 5672
_GREETING = b"AMQP\x00\x00\x09\x01"
_TASK_QUEUE = "celery"

HINTS = (
    Hint(
        r"Login was refused|\(0, 0\): \(403\)|PLAIN login refused",
        "CELERYCONFIG_RESULT_USERNAME and _PASSWORD are not those of the server: run site.yml for the server "
        "and this host with the same vault_rabbitmq_*_password or the same .state directory",
    ),
    Hint(
        r"ACCESS_REFUSED|access_refused",
        "the server's permissions deny this login a queue or exchange: task queues are those of "
        "rabbitmq_queues, and a client declares none (Queue(..., no_declare=True)); see docs/rabbitmq.md",
    ),
    Hint(
        r"NOT_ALLOWED|not_allowed",
        "CELERYCONFIG_RESULT_DATABASE names a vhost that is not there or not for this login: rabbitmq_vhost",
    ),
    Hint(
        r"inequivalent arg",
        "a queue or exchange of this name is there with another type: a queue's type cannot be changed, so "
        "let it run empty, delete it (rabbitmqctl delete_queue), and run site.yml for the server again",
    ),
    Hint(
        r"no exchange '|no queue '",
        "the task queue is not there: add its name to rabbitmq_queues and run site.yml for the server",
    ),
    Hint(
        r"MessageNacked|connection blocked|Connection.blocked",
        "the server stores nothing: an alarm for memory or disk (rabbitmqctl status), or a full queue",
    ),
)

_BY_RPC = "by rpc, whose results are messages to whoever sent the task"
NOT_OFFERED: Mapping[str, str] = {
    "witness": f"{_BY_RPC}: no other host can read them",
    "second_read": f"{_BY_RPC}: there is one reader, once",
    "progress_state": f"{_BY_RPC}: .state sees no message that get() has taken or waits for",
    "group_save_restore": f"{_BY_RPC}: a group cannot be saved",
    "chord": f"{_BY_RPC}: nothing counts the parts of a chord",
    "forget": f"{_BY_RPC}: nothing is stored that could be forgotten",
    "expiry": f"{_BY_RPC}: no single result expires, its queue does",
}


@contextlib.contextmanager
def _open(connection: Connection) -> Iterator[amqp.Connection]:
    host, port = connection.hosts[0]
    tls: dict[str, Any] | bool = False
    if connection.tls.enabled:
        tls = {
            "cert_reqs": ssl.CERT_REQUIRED,
            "ca_certs": connection.tls.ca_file,
            "server_hostname": host,
        }
        if connection.tls.cert_file:
            tls |= {"certfile": connection.tls.cert_file, "keyfile": connection.tls.key_file}
    client = amqp.Connection(
        host=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        userid=connection.username,
        password=connection.password,
        login_method="PLAIN",
        virtual_host=connection.database or "/",
        ssl=tls,
        connect_timeout=_SECONDS,
        read_timeout=_SECONDS,
        write_timeout=_SECONDS,
        # A publication is refused by closing the channel afterwards: only a confirmed one tells.
        confirm_publish=True,
    )
    try:
        client.connect()
        yield client
    finally:
        with contextlib.suppress(AMQPError, OSError):
            client.close()


def _show_that_it_answers(login: Connection) -> None:
    with _open(login) as client:
        client.channel().close()


def _says_plain(address: tuple[str, int]) -> bool:
    """Tell whether AMQP is spoken there without TLS: any answer in it counts, also a refusal."""
    with socket.create_connection(address, timeout=_SECONDS) as plain:
        try:
            plain.sendall(_GREETING)
            answer = plain.recv(8)
        except (ConnectionError, TimeoutError):
            return False
    # A method frame on channel 0, or the header of the version that the server speaks.
    return answer.startswith((b"AMQP", b"\x01\x00\x00"))


def plain_text(target: Target) -> str:
    """Speak to the server without TLS, at its port and at AMQP's own for plain text."""
    _show_that_it_answers(target.login)
    host, port = target.login.hosts[0]
    if _says_plain((host, port)):
        raise Accepted(f"{host} port {port} answers without TLS")
    try:
        answers = _says_plain((host, _PLAIN_PORT))
    except OSError:  # nothing listens there, or the firewall says nothing
        answers = False
    if answers:
        raise Accepted(f"{host} port {_PLAIN_PORT} answers without TLS")
    return f"port {port}, {_PLAIN_PORT}: no answer without TLS; other ports not known here"


def wrong_password(target: Target) -> str:
    """Log in with the right name and another password."""
    _show_that_it_answers(target.login)
    if _lets_in(replace(target.login, password=secrets.token_hex(20))):
        raise Accepted("the server takes any password for this login")
    return f"{target.login.username}: refused"


def no_password(target: Target) -> str:
    """Come without a login, and as the user that a fresh server lets in."""
    _show_that_it_answers(target.login)
    for username, password in (("", ""), ("guest", "guest"), ("guest", "")):
        if _lets_in(replace(target.login, username=username, password=password)):
            raise Accepted(f"the server lets {username or 'a login without a name'} in")
    return "no login, and guest: refused"


def _lets_in(login: Connection) -> bool:
    try:
        _show_that_it_answers(login)
    except AccessRefused:
        return False
    except NotAllowed:
        return True  # the password was right; it is the vhost that is not for this user
    return True


def foreign_key(target: Target) -> str:
    """Make, fill and read what is not Celery's; enter the vhost of a fresh server."""
    login, name = target.login, f"celery-results-smoke-foreign-{secrets.token_hex(8)}"
    allowed = _allowed(
        login,
        {
            "declare a foreign queue": lambda channel: _declare(channel, name),
            "declare a foreign exchange": lambda channel: channel.exchange_declare(
                name, "fanout", auto_delete=True
            ),
            "publish to a foreign exchange": lambda channel: _publish(channel, "amq.fanout", name),
            "read a foreign queue": lambda channel: channel.basic_get(name),
        },
    )
    if login.database != "/":
        try:
            _show_that_it_answers(replace(login, database="/"))
        except (NotAllowed, AccessRefused):
            pass
        else:
            allowed.append("enter another vhost")
    if allowed:
        _remove(login, name)
        raise Accepted(f"{login.username} may {', '.join(allowed)}")
    return f"{login.username}: 5 ways, all refused"


def client_write(target: Target) -> str:
    """Have the client's login forge a result, and do to the task queue more than send to it."""
    client = target.client
    if client is None:
        raise NotRun("this host has no client login (client.env)")
    queue, unused = client.options.get("queues", [_TASK_QUEUE])[0], str(uuid.uuid4())
    foreign = f"celery-results-smoke-{secrets.token_hex(6)}"
    allowed = _allowed(
        client,
        {
            # To a queue that is not there, so that what is allowed does no harm.
            "forge a result": lambda channel: _publish(channel, "", unused),
            # Other arguments than the queue has: where they matter, the server has allowed the attempt.
            "declare or delete the task queue": lambda channel: _declare(channel, queue),
            "make a task queue": lambda channel: _declare(channel, foreign),
            # An argument that the server looks at after the permission, and refuses before any delivery.
            "consume or purge the task queue": lambda channel: channel.basic_consume(
                queue, arguments={"x-priority": "none"}
            ),
        },
    )
    if allowed:
        _remove(client, foreign)
        raise Accepted(f"{client.username} may {', '.join(allowed)}")
    return f"{client.username}: no forged result; may only send to {queue}"


def _declare(channel: amqp.Channel, name: str) -> None:
    channel.queue_declare(name, durable=False, auto_delete=False, arguments={"x-expires": _KEPT_MILLISECONDS})


def _publish(channel: amqp.Channel, exchange: str, routing_key: str) -> None:
    channel.basic_publish(
        amqp.Message("forged"), exchange=exchange, routing_key=routing_key, timeout=_SECONDS
    )


def _allowed(login: Connection, ways: Mapping[str, Way]) -> list[str]:
    allowed = []
    with _open(login) as client:
        for what, way in ways.items():
            try:
                way(client.channel())
            except AccessRefused:
                continue
            except (NotFound, PreconditionFailed):
                pass  # allowed, and then impossible
            allowed.append(what)
    return allowed


def _remove(login: Connection, name: str) -> None:
    """Remove what a successful attack has made; a login that may not has made nothing."""
    with _open(login) as client:
        with contextlib.suppress(AccessRefused, NotFound):
            client.channel().queue_delete(name)
        with contextlib.suppress(AccessRefused, NotFound):
            client.channel().exchange_delete(name)


def forget_chord(backend: Any, group_id: str) -> None:  # noqa: ANN401 - Celery has no types
    """Do nothing: there are no chords."""


ATTEMPTS: Mapping[str, Attempt] = {
    "plain_text": plain_text,
    "wrong_password": wrong_password,
    "no_password": no_password,
    "foreign_key": foreign_key,
    "client_write": client_write,
}
BROKER_ATTEMPTS: Mapping[str, Attempt] = {
    name: attempt for name, attempt in ATTEMPTS.items() if name != "client_write"
}
