"""What a login may do on the broker: tried with requests that change nothing, allowed or not.

RabbitMQ checks permissions before it looks whether a queue or exchange is there; configure, write and read
are patterns of names, whatever bears the name. So names that nothing bears tell what a login may do to
others, and taking away a binding that is not there tells what it may do to those that are.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

import amqp

from celery_results.doctor.findings import Finding, could_not_check, error, warning
from celery_results.doctor.servers import rpc
from celery_results.doctor.servers.rabbitmq import queues, state
from celery_results.doctor.servers.rabbitmq.parameters import BlockedError, Parameters, Probe

if TYPE_CHECKING:
    from celery_results.doctor.subject import Subject

GUEST_WORKS = error(
    "CRB463",
    "The broker lets guest in with the password guest",
    "Delete it: rabbitmqctl delete_user guest. It is an administrator, and every program on the "
    "broker's host may be one with it.",
)
TOO_POWERFUL = warning(
    "CRB464",
    "The login of the settings may do more on the broker than Celery needs",
    "Give it the patterns of docs/doctor.md#crb464: set_permissions replaces what was there.",
)
LACKS = error(
    "CRB465",
    "The login of the settings may not do what Celery does on the broker",
    "Give it the patterns of docs/doctor.md#crb464, with the names of your own queues.",
)

FOREIGN: Final = "celery-results-doctor-absent"
Request = Callable[[amqp.Channel], object]


def guest(own: Parameters) -> Iterator[Finding]:
    """Try the account that every node is born with."""
    try:
        with own.connection(userid="guest", password="guest", login_method="PLAIN"):  # noqa: S106
            yield GUEST_WORKS.finding(f"{own.where}, vhost {own.vhost}")
    except amqp.NotAllowed:
        yield GUEST_WORKS.finding(f"{own.where}; only vhost {own.vhost} is closed to it")
    except (amqp.AMQPError, OSError):
        return


def check(own: Parameters, subject: Subject) -> Iterator[Finding]:
    """Judge what the login of the settings may do, and what it may not."""
    login = subject.environ.get("CELERYCONFIG_LOGIN", "")
    try:
        with own.connection() as connection:
            tasks = queues.task_queues(subject.settings)
            may = list(_beyond(connection))
            if login == "client":
                may += _beyond_a_client(connection, tasks)
            lacks = list(_lacking(connection, tasks, login))
            if subject.alias in rpc.ALIASES:
                lacks += _lacking_for_rpc(connection, login)
    except BlockedError as blocked:
        yield from state.alarm(str(blocked))
        yield could_not_check("what the login may do on the broker", "the broker takes no messages")
        return
    except (amqp.AMQPError, OSError) as failure:
        yield could_not_check("what the login may do on the broker", type(failure).__name__)
        return
    if may:
        yield TOO_POWERFUL.finding(f"{own.username} may {', '.join(may)}")
    if lacks:
        yield LACKS.finding(f"{own.username} may not {', '.join(dict.fromkeys(lacks))}")


def check_monitor(monitor: Parameters) -> Iterator[Finding]:
    """Judge what the monitor's login may do besides publishing to the probe."""
    try:
        with monitor.connection() as connection:
            may = list(_beyond(connection))
            if not _refused(connection, partial(_publish, "", str(uuid.uuid4()))):
                may.append("write into any queue (write on amq.default)")
    except (BlockedError, amqp.AMQPError, OSError) as failure:
        yield could_not_check("what the monitor login may do on the broker", type(failure).__name__)
        return
    if may:
        yield TOO_POWERFUL.finding(f"{monitor.username} may {', '.join(may)}")


def _refused(connection: Probe, request: Request) -> str:
    """Give the server's words where it refuses a request for lack of permission; empty where it does not."""
    channel = connection.channel()
    try:
        request(channel)
        channel.queue_declare(FOREIGN, passive=True)  # what is published is answered by what comes after it
    except amqp.AccessRefused as failure:
        return str(failure.reply_text)
    except amqp.ChannelError:
        return ""
    return ""


def _publish(exchange: str, key: str, channel: amqp.Channel) -> None:
    channel.basic_publish(amqp.Message(""), exchange=exchange, routing_key=key)


def _declare_again(queue: queues.TaskQueue, channel: amqp.Channel) -> None:
    """Declare a queue that is there; who may declare it may delete it."""
    channel.queue_declare(queue.name, passive=True)
    channel.queue_declare(
        queue.name, durable=queue.durable, auto_delete=queue.auto_delete, arguments=dict(queue.arguments)
    )


def _take_binding_from_queue(name: str, channel: amqp.Channel) -> None:
    """Write on the queue, read on the exchange of the same name; no binding has that key."""
    channel.queue_unbind(name, name, str(uuid.uuid4()))


def _take_binding_from_exchange(name: str, source: str, channel: amqp.Channel) -> None:
    """Write on the first, read on the second; no binding has that key."""
    channel.exchange_unbind(name, source, str(uuid.uuid4()))


def _beyond(connection: Probe) -> Iterator[str]:
    """Try names that are not Celery's."""
    if not _refused(connection, lambda channel: channel.queue_delete(FOREIGN)):
        yield "make and delete queues of any name (configure)"
    if not _refused(connection, lambda channel: channel.queue_purge(FOREIGN)):
        yield "read queues of any name (read)"
    if not _refused(connection, partial(_publish, FOREIGN, "")):
        yield "publish to exchanges of any name (write)"


def _beyond_a_client(connection: Probe, tasks: list[queues.TaskQueue]) -> Iterator[str]:
    if not _refused(connection, partial(_publish, "", str(uuid.uuid4()))):
        yield "write into any queue, results of others included (write on amq.default)"
    for queue in tasks:
        if not _refused(connection, partial(_take_binding_from_queue, queue.name)):
            yield f"take tasks out of the queue {queue.name} (read)"
        if not _refused(connection, partial(_declare_again, queue)):
            yield f"delete the queue {queue.name} (configure)"


def _lacking(connection: Probe, tasks: list[queues.TaskQueue], login: str) -> Iterator[str]:
    """Try what sending and taking tasks needs; a client takes none."""
    for queue in tasks:
        if queue.exchange_type == "direct":
            # Celery sends there by the nameless exchange.
            if _refused(connection, partial(_publish, "", str(uuid.uuid4()))):
                yield "send to any queue (write on amq.default, which direct exchanges need)"
            continue
        name, absent = queue.exchange, str(uuid.uuid4())
        said = _refused(connection, partial(_take_binding_from_exchange, name, absent))
        if f"exchange '{name}'" in said:
            yield f"send tasks to {name} (write)"
        elif login == "worker" and _refused(connection, partial(_take_binding_from_queue, queue.name)):
            yield f"take tasks from {name} (read)"


def _lacking_for_rpc(connection: Probe, login: str) -> Iterator[str]:
    reply = str(uuid.uuid4())
    if _refused(connection, lambda channel: channel.queue_delete(reply)):
        yield "make its reply queue (configure on UUIDs)"
    if _refused(connection, lambda channel: channel.queue_purge(reply)):
        yield "read its reply queue (read on UUIDs)"
    if login != "client" and _refused(connection, partial(_publish, "", reply)):
        yield "send results back (write on amq.default)"
