"""What the broker says of itself: its version, its alarms, its task queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import amqp
from celery import VERSION

from celery_results.doctor.findings import Finding, could_not_check, error, info, warning
from celery_results.doctor.servers.rabbitmq import queues
from celery_results.doctor.servers.rabbitmq.parameters import BlockedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery_results.doctor.servers.rabbitmq.parameters import Parameters, Probe
    from celery_results.doctor.subject import Settings

MEMORY_ALARM = error(
    "CRB470",
    "The broker is out of memory and takes no messages",
    "Find what fills it (rabbitmqctl list_queues name messages memory), start workers or purge what "
    "nobody needs, or raise vm_memory_high_watermark: until then no task is sent and no rpc result "
    "arrives.",
)
DISK_ALARM = error(
    "CRB471",
    "The broker is out of disk and takes no messages",
    "Free space below /var/lib/rabbitmq until more than disk_free_limit is free: until then no task is "
    "sent and no rpc result arrives.",
)
BLOCKED = error(
    "CRB472",
    "The broker takes no messages",
    "Look for an alarm on the broker's host: rabbitmq-diagnostics alarms.",
)
OTHER_PRODUCT = info(
    "CRB473",
    "The broker is not RabbitMQ",
    "doctor knows RabbitMQ; what it says of queues and versions may not hold for this one.",
)
KILLS_CELERY = error(
    "CRB474",
    "This RabbitMQ refuses the queues of these workers",
    "Install Celery 5.7 or later and leave control_queue_exclusive and event_queue_exclusive at True: "
    "RabbitMQ 4.3 refuses transient queues that are not exclusive (541 INTERNAL_ERROR), and workers die"
    " at their start. Until then set deprecated_features.permit.transient_nonexcl_queues = true on the "
    "server.",
)
UNSUPPORTED = warning(
    "CRB475",
    "The broker's version is no longer maintained",
    "Install a later RabbitMQ: below 3.10 there is neither support nor what quorum queues need. A "
    "distribution's own package (3.10 in Debian 12) gets its security fixes from there.",
)
OTHER_QUEUE = error(
    "CRB476",
    "A task queue on the broker is not the one of the settings",
    "Make both alike: RabbitMQ changes neither type nor durability of a queue. Let the workers empty "
    "it, stop them, delete it (rabbitmqctl delete_queue), and start them again; or set "
    "task_default_queue_type as it is.",
)
NOBODY_CONSUMES = warning(
    "CRB477",
    "Tasks wait and no worker takes them",
    "Start workers for this queue (celery worker -Q), or purge it if its tasks are not needed any more.",
)

OLDEST_MAINTAINED: Final = (3, 10)
_REFUSES_TRANSIENT: Final = (4, 3)
_EXCLUSIVE_BY_DEFAULT: Final = (5, 7)
PROBE: Final = "celery-results.probe"
_NO_MONITOR: Final = (
    "Deploy monitor.env, or run doctor with --monitor-env-file: its login may publish to the exchange "
    f"{PROBE}, and a server with an alarm answers that it is blocked."
)


def judge(
    told: Mapping[str, Any], settings: Settings, celery: tuple[int, int] = VERSION[:2]
) -> Iterator[Finding]:
    """Judge what the server says of itself before any login."""
    product, version = str(told.get("product", "")), str(told.get("version", ""))
    if product != "RabbitMQ":
        yield OTHER_PRODUCT.finding(f"it calls itself {product or 'nothing'}")
        return
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        yield could_not_check("the broker's version", f"it says {version or 'nothing'}")
        return
    if (major, minor) < OLDEST_MAINTAINED:
        yield UNSUPPORTED.finding(f"RabbitMQ {version}")
    if (major, minor) < _REFUSES_TRANSIENT:
        return
    if celery < _EXCLUSIVE_BY_DEFAULT:
        yield KILLS_CELERY.finding(f"RabbitMQ {version} and Celery {celery[0]}.{celery[1]}")
        return
    for kind in ("control", "event"):
        exclusive = settings.get(f"{kind}_queue_exclusive", True)
        if not exclusive and not settings.get(f"{kind}_queue_durable", False):
            yield KILLS_CELERY.finding(f"RabbitMQ {version} and {kind}_queue_exclusive = {exclusive!r}")


def alarms(monitor: Parameters | None) -> Iterator[Finding]:
    """Publish to an exchange without queues: a server with an alarm says so to whoever publishes.

    connection.blocked is sent when the server has read the message; it reads nothing after that, so that an
    answer to the next request shows that there is no alarm.
    """
    what = "the broker's memory and disk alarms"
    if monitor is None:
        yield could_not_check(what, "there is no monitor login for the broker", _NO_MONITOR)
        return
    try:
        with monitor.connection() as connection:
            channel = connection.channel()
            channel.basic_publish(amqp.Message(""), exchange=PROBE)
            channel.exchange_declare(PROBE, "fanout", passive=True)
    except BlockedError as blocked:
        yield from alarm(str(blocked))
    except amqp.NotFound:
        yield could_not_check(what, f"the broker has no exchange {PROBE}", "Run site.yml for the broker.")
    except amqp.AccessRefused:
        yield could_not_check(what, f"this login may not publish to {PROBE}", _NO_MONITOR)
    except (amqp.AMQPError, OSError) as failure:
        yield could_not_check(what, type(failure).__name__)


def alarm(reason: str) -> Iterator[Finding]:
    """Tell memory from disk; RabbitMQ says "low on memory", "low on disk" or both."""
    named = [kind for kind, word in ((MEMORY_ALARM, "memory"), (DISK_ALARM, "disk")) if word in reason]
    for kind in named or [BLOCKED]:
        yield kind.finding(f"connection.blocked: {reason or 'no reason given'}")


def task_queues(connection: Probe, settings: Settings) -> Iterator[Finding]:
    """Compare the queues that are there with the settings; nothing is made that is not there."""
    for queue in queues.task_queues(settings):
        try:
            there = connection.channel().queue_declare(queue.name, passive=True)
        except amqp.NotFound:
            continue  # the first worker makes it
        except amqp.AMQPError as failure:
            yield could_not_check(f"the queue {queue.name}", type(failure).__name__)
            continue
        if there.message_count and not there.consumer_count:
            yield NOBODY_CONSUMES.finding(f"{there.message_count:,} messages in {queue.name}, no consumer")
        yield from _compare(connection, queue)


def _compare(connection: Probe, queue: queues.TaskQueue) -> Iterator[Finding]:
    """Declare a queue that is there as a worker does: alike changes nothing, unlike is refused."""
    try:
        connection.channel().queue_declare(
            queue.name,
            durable=queue.durable,
            exclusive=queue.exclusive,
            auto_delete=queue.auto_delete,
            arguments=dict(queue.arguments),
        )
    except amqp.PreconditionFailed as failure:
        yield OTHER_QUEUE.finding(failure.reply_text.partition(" - ")[2] or failure.reply_text)
    except amqp.AccessRefused:
        return  # a login that may not declare the queue is not told what it is
    except amqp.AMQPError as failure:
        yield could_not_check(f"the queue {queue.name}", type(failure).__name__)
